// One side against the mixture m = (1 - b) p + b q, gradients through m: the halves of f-DISTILL's JS and DistiLLM's
// skewed KLs.
//
//   KL(p, m)    h = b q (1 - p / m)                          (OfStudent = false)
//   KL(q, m)    h = q (log q - log m + b (1 - q / m))        (OfStudent = true)
//
// With e = small / big, c the weight of the smaller side in m, y = c (e - 1), m / big = 1 + y, of the two KLs to m
// that of the big side is big (y - log(1 + y)); that of the small side is small (m / small - 1 - log(m / small)).
#pragma once

#include "kd/divergence.h"

KD_BEGIN

template <class F, bool OfStudent> struct MixtureKl {
  static constexpr Reads kReads = Reads::kLogRatio;
  F b, rest;  // weights of q and of p in m

  KD_HD Term<F> operator()(const Pair<F>& v) const {
    const Sides<F> s(v);
    const auto small_is_q = s.below;
    const F y = select(small_is_q, b, rest) * s.expm1;
    const Log1p<F> log_m = log1p(y);  // log(m / big)
    const F of_big = log_m.gap;
    const F of_small = fma(s.expm1 + F(1.0f), log_m.gap, fnma(s.expm1, y, s.psi));
    const F inverse = F(1.0f) / (y + F(1.0f));  // big / m
    if (OfStudent) {
      const F g_small = F(0.0f) - fma(b * rest * s.expm1, inverse, s.x_far + log_m.value);
      const F g_big = fma(b * y, inverse, F(0.0f) - log_m.value);
      return {s.big * select(small_is_q, of_small, of_big), v.q * select(small_is_q, g_small, g_big)};
    }
    const F g = b * b * s.expm1 * inverse;
    return {s.big * select(small_is_q, of_big, of_small), v.q * select(small_is_q, g, F(0.0f) - g)};
  }
};

template <class F, bool OfStudent> struct FarMixtureKl {
  static constexpr Reads kReads = Reads::kLogProbabilities;
  F b, rest;

  KD_HD Term<F> operator()(const Pair<F>& v) const {
    const F m = positive(fma(b, v.q, rest * v.p));
    const F q_over_m = v.q / m;
    if (OfStudent) {
      const F log_ratio = v.log_q - log(m);
      return {v.q * log_ratio, v.q * (log_ratio + fnma(b, q_over_m, b))};
    }
    return {v.p * (v.log_p - log(m)), b * fnma(v.p, q_over_m, v.q)};
  }
};

KD_END
