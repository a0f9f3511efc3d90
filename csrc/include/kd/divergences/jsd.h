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

// Far: with w = m / big, log(big / m) = -log w and log(small / m) = -x - log w.
template <class F> struct LogJsd {
  F beta, rest;

  KD_HD Term<F> operator()(const LogSides<F>& v) const {
    const F of_big = select(v.below, beta, rest), of_small = select(v.below, rest, beta) * v.ratio;
    const F log_w = log2(of_big + of_small), less = -ln2<F>() * v.big;
    const F big_term = of_big * log_w, small_term = of_small * (v.x + log_w);
    return {less * (big_term + small_term), less * select(v.below, small_term, big_term)};
  }
};

KD_END
