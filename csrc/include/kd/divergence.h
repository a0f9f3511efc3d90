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
// Each divergence comes in two forms. The near form keeps every digit; the far form is the textbook's, right to the
// rounding of probabilities, and costs less. A row takes the far form where its value is large enough for that.
#pragma once

#include "kd/elementary.h"

KD_BEGIN

// What a form reads besides p and q.
enum class Reads { kProbabilities, kLogRatio, kLogProbabilities };

template <class F> struct Pair {
  F p, q;
  F d;             // kLogRatio: +-inf where one side is -inf; 0 where p = q = 0, whatever the logits
  F log_p, log_q;  // kLogProbabilities: bounded below, so that 0 log 0 is 0
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
  F expm1;  // e^-x - 1 = small / big - 1
  F phi;    // e^-x - 1 + x_far
  F psi;    // 1 - e^-x (1 + x)

  KD_HD explicit Sides(const Pair<F>& v) : below(v.d <= F(0.0f)), big(max(v.p, v.q)), x(abs(v.d)) {
    x_far = min(x, F(kFarDecay<ScalarOf<F>>));
    const Decay<F> e = decay(x_far);
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

// log q - log p as a factor of q or p in a gradient: finite, so that 0 * inf and inf - inf cannot arise. A divergence
// that is infinite has the gradient's limit: huge, of the right sign. kInfiniteSum bounds sum_v h_v the same way, lower,
// so that the entry that made it infinite keeps the larger weight.
constexpr double kInfiniteLogRatio = 2e30;
constexpr double kInfiniteSum = 1e30;

template <class F> KD_HD F finite(F d) {
  return max(min(d, F(static_cast<float>(kInfiniteLogRatio))), F(static_cast<float>(-kInfiniteLogRatio)));
}

// Probabilities as denominators and under logarithms.
template <class F> KD_HD F positive(F p) { return max(p, F(1.17549435e-38f)); }

KD_END
