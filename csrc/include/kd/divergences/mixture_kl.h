// One side against the mixture m = (1 - b) p + b q, gradients through m: the halves of f-DISTILL's JS and DistiLLM's
// skewed KLs.
//
//   KL(p, m)    h = -b p q / m                               (OfStudent = false)
//   KL(q, m)    h = q (log q - log m + 1 - b q / m)          (OfStudent = true)
//
// With y = m / p - 1 an entry of KL(p, m) is -p log(1 + y), or p (y - log(1 + y)) >= 0, as sum (m - p) = 0; likewise
// for q. The near form adds b q to the first h, and either form takes (1 - b) q from the second: h = O(y).
#pragma once

#include "kd/divergence.h"

KD_BEGIN

template <class Form, class F, bool OfStudent> struct MixtureKl {
  static constexpr bool kNeedsLogRatio = Form::kNeedsLogRatio;
  F b, rest;  // weights of q and of p in m

  KD_HD Term<F> operator()(const Pair<F>& v) const {
    const Ratios<F> r = Form::ratios(v);
    const F y = OfStudent ? rest * r.p_over_q : b * r.q_over_p;
    const Log1p<F> log_m = Form::log1p(y);  // log(m / q) or log(m / p)
    const F u = y + F(1.0f);
    if (OfStudent) {
      const F value = Form::share(v.q, F(0.0f) - rest * r.difference, log_m, y);
      return {value, v.q * (divide(b * y, u) - log_m.value)};
    }
    const F value = Form::share(v.p, b * r.difference, log_m, y);
    return {value, Form::kIsNear ? b * v.q * divide(y, u) : F(0.0f) - divide(b * v.q, u)};
  }
};

// Far, with one logarithm and one division.
template <class F, bool OfStudent> struct LogMixtureKl {
  F b, rest;

  KD_HD Term<F> operator()(const LogPair<F>& v) const {
    const F m = positive(fma(b, v.q, rest * v.p)), log_m = log2(m);
    const F share = divide(b * v.q, m);  // of q in m
    if (OfStudent) {
      const F value = v.q * ln2<F>() * (bounded_log(v.log_q) - log_m);
      return {value, fma(v.q, b - share, value)};
    }
    return {v.p * ln2<F>() * (bounded_log(v.log_p) - log_m), F(0.0f) - share * v.p};
  }
};

KD_END
