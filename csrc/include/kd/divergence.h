// What a divergence is to the kernels: a pointwise function of one vocabulary entry.
//
//   L = sum_v value_v              p, q   teacher and student probability of the entry
//   h_v = q_v dL/dq_v              d      log q - log p
//   dL/dz_v = (h_v - q_v sum_u h_u) / T
//
// The last line does not change when a multiple of q is added to h, nor the first when a multiple of q - p is added to
// value. Every divergence here uses both freedoms to make value O(d^2) and h O(d): nothing cancels where the student is
// close to the teacher, value is never negative, and equal inputs give exactly zero.
//
// Each divergence comes in two forms, near and far. The near form keeps every digit; the far form works from the
// probabilities, is right to their rounding, and costs less. A row takes it where its value is large enough for that.
// On GPUs, where exponentials, divisions and logarithms are what there is least of, the far form works from LogSides.
#pragma once

#include "kd/elementary.h"

KD_BEGIN

template <class F> struct Pair {
  F p, q;
  F d;  // where kNeedsLogRatio: +-inf where one side is -inf; 0 where p = q = 0, whatever the logits
};

template <class F> struct Term {
  F value, h;
};

// An entry seen from its larger side. Ratios are taken as small / big = e^-x <= 1, which cannot overflow.
template <class F> struct Sides {
  using Mask = decltype(F() <= F());
  Mask below;  // q <= p: the teacher's probability is the big one
  F big;
  F x;      // |d|
  F x_far;  // |d|, bounded where e^-x is 0 anyway, so that products with e^-x stay finite
  F ratio;  // e^-x = small / big
  F expm1;  // e^-x - 1
  F phi;    // e^-x - 1 + x_far
  F psi;    // 1 - e^-x (1 + x)

  KD_HD explicit Sides(const Pair<F>& v) : below(v.d <= F(0.0f)), big(max(v.p, v.q)), x(abs(v.d)) {
    x_far = min(x, F(kFarDecay<ScalarOf<F>>));
    const Decay<F> e = decay(x_far);
    ratio = e.exp;
    expm1 = e.expm1;
    phi = e.phi;
    psi = F(0.0f) - fma(x_far, expm1, phi);
  }

  // small - big carries the sign of the entry: q - p.
  KD_HD F difference() const {
    const F m = big * expm1;
    return select(below, m, F(0.0f) - m);
  }
};

// A probability as a denominator.
template <class F> KD_HD F positive(F p) { return max(p, F(1.17549435e-38f)); }

// The two ratios of an entry, less 1: finite, up to 1e38.
template <class F> struct Ratios {
  F q_over_p, p_over_q;
  F difference;  // q - p
};

// The two forms, for divergences written in ratios: how those are had from an entry, log(1 + y), and an entry's share
// of sum a log(a / m), m = a (1 + y), of which sum (m - a) = 0 may be added.
struct Near {
  static constexpr bool kIsNear = true;
  static constexpr bool kNeedsLogRatio = true;

  template <class F> static KD_HD Ratios<F> ratios(const Pair<F>& v) {
    const Sides<F> s(v);
    const F above = divide(F(0.0f) - s.expm1, s.ratio);  // e^x - 1
    return {select(s.below, s.expm1, above), select(s.below, above, s.expm1), s.difference()};
  }
  template <class F> static KD_HD Log1p<F> log1p(F y) { return kd::log1p(y); }
  // Where m is much larger than a, y has lost what m - a still has: a may even have underflowed to 0.
  template <class F> static KD_HD F share(F a, F m_less_a, const Log1p<F>& log_m, F y) {
    return select(y > F(1.0f), fnma(a, log_m.value, m_less_a), a * log_m.gap);
  }
};

struct Far {
  static constexpr bool kIsNear = false;
  static constexpr bool kNeedsLogRatio = false;

  template <class F> static KD_HD Ratios<F> ratios(const Pair<F>& v) {
    const F difference = v.q - v.p;
    return {divide(difference, positive(v.p)), divide(F(0.0f) - difference, positive(v.q)), difference};
  }
  template <class F> static KD_HD Log1p<F> log1p(F y) { return {log(y + F(1.0f)), F(0.0f)}; }
  template <class F> static KD_HD F share(F a, F, const Log1p<F>& log_m, F) { return F(0.0f) - a * log_m.value; }
};

// log q - log p as a factor of q or p in a gradient: finite, so that 0 * inf and inf - inf cannot arise. A divergence
// that is infinite has the gradient's limit: huge, of the right sign. kInfiniteMean bounds the mean of d under q the
// same way, lower, so that the entry that made it infinite keeps the larger weight.
constexpr double kInfiniteLogRatio = 2e30;
constexpr double kInfiniteMean = 1e30;

template <class F> KD_HD F finite(F d) {
  return max(min(d, F(static_cast<float>(kInfiniteLogRatio))), F(static_cast<float>(-kInfiniteLogRatio)));
}

// An entry seen from its larger side, without small differences: two exponentials for both probabilities and their
// ratio, all that a logarithm of a mixture is needed for lies in [0, 1].
template <class F> constexpr F kFarApart = F(1e30f);
template <class F> struct LogSides {
  bool below;  // q <= p: the teacher's probability is the big one
  F big;
  F x;      // |log2 q - log2 p|, kFarApart where one side is -inf: a ratio of 0 times it is 0
  F ratio;  // 2^-x = small / big

  KD_HD F small() const { return big * ratio; }
  KD_HD F p() const { return select(below, big, small()); }
  KD_HD F q() const { return select(below, small(), big); }
  // log q - log p, infinite where one side is -inf.
  KD_HD F d() const {
    const F d = select(x < kFarApart<F>, ln2<F>() * x, F(INFINITY));
    return select(below, F(0.0f) - d, d);
  }
};

KD_END
