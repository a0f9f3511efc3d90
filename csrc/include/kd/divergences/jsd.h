// Generalised Jensen-Shannon divergence, m = beta p + (1 - beta) q:
//
//   L = beta KL(p, m) + (1 - beta) KL(q, m)      h = (1 - beta) q (log q - log m)
//
// With y = m / p - 1, an entry of KL(p, m) is -p log(1 + y), or p (y - log(1 + y)) >= 0, as sum (m - p) = 0; likewise
// for q.
#pragma once

#include "kd/divergence.h"

KD_BEGIN

template <class Form, class F> struct Jsd {
  static constexpr bool kNeedsLogRatio = Form::kNeedsLogRatio;
  F beta, rest;  // rest = 1 - beta

  KD_HD Term<F> operator()(const Pair<F>& v) const {
    const Ratios<F> r = Form::ratios(v);
    const F y_p = rest * r.q_over_p, y_q = beta * r.p_over_q;  // m / p - 1, m / q - 1
    const Log1p<F> of_p = Form::log1p(y_p), of_q = Form::log1p(y_q);
    const F value_p = Form::share(beta * v.p, beta * rest * r.difference, of_p, y_p);
    const F value_q = Form::share(rest * v.q, F(0.0f) - beta * rest * r.difference, of_q, y_q);
    return {value_p + value_q, F(0.0f) - rest * v.q * of_q.value};
  }
};

// Far, with one logarithm.
template <class F> struct LogJsd {
  F beta, rest;

  KD_HD Term<F> operator()(const LogPair<F>& v) const {
    const F log_m = log2(positive(fma(beta, v.p, rest * v.q)));
    const F of_p = ln2<F>() * (bounded_log(v.log_p) - log_m), of_q = ln2<F>() * (bounded_log(v.log_q) - log_m);
    const F h = rest * v.q * of_q;
    return {fma(beta * v.p, of_p, h), h};
  }
};

KD_END
