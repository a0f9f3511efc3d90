// The pointwise rules of Sinkhorn iterations on an absorbed kernel; csrc/cpu/sinkhorn_frame.h has the scheme.
//
// x = a rho and y = b sigma scale K_ij = exp((F_i + H_j - C_ij) / eps). The offsets F, H of a frame take logarithms of
// rho and sigma up where these leave [1 / kDrift, kDrift]; in the frame that has absorbed a scaling it is 1.
#pragma once

#include "kd/real.h"

KD_BEGIN

template <class S> struct ScalingLimits {
  static constexpr S kDrift = S(268435456);              // 2^28; K is at most 2^56 before it is built anew
  static constexpr S kFar = S(8.6736173798840e-19);      // 2^-60: a column sum of frame A that asks for frame B
  static constexpr S kNothing = S(7.5231638452626e-37);  // 2^-120: below it a sum is 0, and its reciprocal would be inf
};

template <> struct ScalingLimits<double> {
  static constexpr double kDrift = 0x1p200, kFar = 0x1p-300, kNothing = 0x1p-1000;
};

// 0 for rows and columns that reach nothing; NaN stays NaN.
template <class S> KD_HD S reciprocal_of_sum(S sum) { return sum < ScalingLimits<S>::kNothing ? S(0) : S(1) / sum; }

// A scaling in a frame that has absorbed it, or not.
template <class S> KD_HD S relative(S scaling, bool absorbed) {
  return absorbed ? (scaling == S(0) ? S(0) : S(1)) : scaling;
}

// mass scaling, or the mass itself where the scaling is absorbed; 0 where it is 0.
template <class S> KD_HD S scaled(S mass, S scaling, bool absorbed) {
  return absorbed ? (scaling == S(0) ? S(0) : mass) : mass * scaling;
}

// The lanes whose scaling asks for new offsets: those of rows and columns with mass.
template <class F> KD_HD uint32_t drifted_lanes(F mass, F scaling) {
  using S = ScalarOf<F>;
  const F zero(S(0)), high(ScalingLimits<S>::kDrift), low(S(1) / ScalingLimits<S>::kDrift);
  const uint32_t away = mask_bits(high < scaling) | (mask_bits(zero < scaling) & mask_bits(scaling < low));
  return away & mask_bits(zero < mass);
}

KD_END
