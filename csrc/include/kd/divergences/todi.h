// ToDi (arXiv 2505.16297): w = sigmoid(beta (log p - log q)), held constant in the gradient,
//
//   L = sum w p (log p - log q) + (1 - w) q (log q - log p)
//   h = -w p + (1 - w) q + (1 - w) q d
//
// With r = (1 - e^-(1 + beta) x) / (1 + e^-beta x):  (1 - w) q - w p = +-big r,  value = x big r >= 0.
// At beta = 1 r is 1 - e^-x, and the value that of Jeffreys; the gradient is not.
#pragma once

#include "kd/divergence.h"

KD_BEGIN

// 0 * inf, where an entry that the other side forbids is too small for its half, has the limit of the value.
template <class F> KD_HD F todi_value(F step, F d) { return select(abs(step) > F(0.0f), step * d, F(0.0f)); }

template <class F, bool UnitBeta> struct Todi {
  static constexpr bool kNeedsLogRatio = true;
  F beta;

  KD_HD Term<F> operator()(const Pair<F>& v) const {
    const Sides<F> s(v);
    const F zero = F(0.0f), one = F(1.0f);
    F e = s.ratio, r = zero - s.expm1;  // at beta = 1
    if (!UnitBeta) {
      const Decay<F> power = decay(min(beta * finite(s.x), F(kFarDecay<ScalarOf<F>>)));
      e = power.exp;                                                // e^-beta x
      r = zero - fma(s.expm1, power.expm1, s.expm1 + power.expm1);  // 1 - e^-(1 + beta) x
    }
    const F sigmoid = divide(one, e + one);
    if (!UnitBeta) r = r * sigmoid;
    const F step = s.big * r;
    const F q_weight = select(s.below, e * sigmoid, sigmoid);  // 1 - w
    return {todi_value(step, s.x), fma(q_weight * v.q, finite(v.d), select(s.below, zero - step, step))};
  }
};

template <class F, bool UnitBeta> struct FarTodi {
  static constexpr bool kNeedsLogRatio = true;
  F beta;

  KD_HD Term<F> operator()(const Pair<F>& v) const {
    const F one = F(1.0f);
    F q_weight;
    if (UnitBeta) {
      q_weight = divide(v.q, positive(v.p + v.q));
    } else {
      const F e = power(beta * abs(finite(v.d)) * F(ScalarOf<F>(-1 / kLnBase<ScalarOf<F>>)));
      q_weight = divide(select(v.d <= F(0.0f), e, one), e + one);
    }
    const F step = fnma(one - q_weight, v.p, q_weight * v.q);  // (1 - w) q - w p
    return {todi_value(step, v.d), fma(q_weight * v.q, finite(v.d), step)};
  }
};

KD_END
