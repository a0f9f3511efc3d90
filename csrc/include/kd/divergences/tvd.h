// Total variation distance: L = 1/2 sum |p - q|, h = 1/2 q sign(q - p), 0 at a tie.
#pragma once

#include "kd/divergence.h"

KD_BEGIN

template <class F> KD_HD Term<F> tvd_term(F difference, F q) {  // difference = q - p
  const F half = F(0.5f) * q, zero = F(0.0f);
  const F h = select(difference < zero, zero - half, half);
  return {F(0.5f) * abs(difference), select(difference == zero, zero, h)};
}

template <class F> struct Tvd {
  static constexpr bool kNeedsLogRatio = true;
  KD_HD Term<F> operator()(const Pair<F>& v) const { return tvd_term(Sides<F>(v).difference(), v.q); }
};

template <class F> struct FarTvd {
  static constexpr bool kNeedsLogRatio = false;
  KD_HD Term<F> operator()(const Pair<F>& v) const { return tvd_term(v.q - v.p, v.q); }
};

// Far, with the sign of d for that of q - p: it needs no p.
template <class F> struct LogTvd {
  KD_HD Term<F> operator()(const LogPair<F>& v) const {
    return {F(0.5f) * abs(v.q - v.p), tvd_term(v.log_q - v.log_p, v.q).h};
  }
};

KD_END
