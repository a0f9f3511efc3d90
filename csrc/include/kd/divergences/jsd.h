// Generalised Jensen-Shannon divergence, m = beta p + (1 - beta) q:
//
//   L = beta KL(p, m) + (1 - beta) KL(q, m)      h = (1 - beta) q (log q - log m)
//
// With omega(y) = (1 + y) log(1 + y) - y, c the weight of the smaller side in m and e = small / big:
//   value = big (c omega(e - 1) - omega(c (e - 1))),     log(m / big) = log1p(c (e - 1)).
#pragma once

#include "kd/divergence.h"

KD_BEGIN

template <class F> struct Jsd {
  static constexpr Reads kReads = Reads::kLogRatio;
  F beta, rest;  // rest = 1 - beta

  KD_HD Term<F> operator()(const Pair<F>& v) const {
    const Sides<F> s(v);
    const F c = select(s.below, rest, beta);
    const F y = c * s.expm1;
    const Log1p<F> log_m = log1p(y);
    const F omega = fnma(y + F(1.0f), log_m.gap, y * y);
    const F log_m_over_q = select(s.below, s.x_far + log_m.value, log_m.value);
    return {s.big * fma(c, s.psi, F(0.0f) - omega), F(0.0f) - rest * v.q * log_m_over_q};
  }
};

template <class F> struct FarJsd {
  static constexpr Reads kReads = Reads::kLogProbabilities;
  F beta, rest;

  KD_HD Term<F> operator()(const Pair<F>& v) const {
    const F log_m = log(positive(fma(beta, v.p, rest * v.q)));
    const F h = rest * v.q * (v.log_q - log_m);
    return {fma(beta * v.p, v.log_p - log_m, h), h};
  }
};

KD_END
