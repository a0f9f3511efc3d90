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

// Far: the gradient needs no p.
template <class F> struct LogTvd {
  KD_HD F h(F d, F q) const { return tvd_term(d, q).h; }
  KD_HD Term<F> operator()(const LogSides<F>& v) const {
    return {F(0.5f) * (v.big - v.small()), h(select(v.below, F(0.0f) - v.x, v.x), v.q())};
  }
};

KD_END
