// KL(p, q), KL(q, p) and their weighted sums: forward KL (1, 0), reverse KL (0, 1), Jeffreys (1, 1), AKL (per row).
//
//   KL(p, q) = sum p (e^d - 1 - d)       h = q - p    sum h = 0
//   KL(q, p) = sum q (e^-d - 1 + d)      h = q d      sum h = KL(q, p)
//
// Both sums h are known once the rows are normalised, so the gradient needs no sweep of its own.
#pragma once

#include "kd/divergence.h"

KD_BEGIN

// Forward and Reverse say which weights can be other than zero.
template <class F, bool Forward, bool Reverse> struct Kl {
  static constexpr bool kNeedsLogRatio = true;
  F forward, reverse;  // weights

  KD_HD Term<F> operator()(const Pair<F>& v) const {
    const Sides<F> s(v);
    // e^-x - 1 + x, infinite for an entry that one side forbids. Times big == 0 it cannot be: d is 0 there.
    const F phi = s.phi + (s.x - s.x_far);
    Term<F> t{F(0.0f), F(0.0f)};
    if (Forward) {
      const F value = s.big * select(s.below, phi, s.psi);
      t.value = Reverse ? select(forward > F(0.0f), forward * value, F(0.0f)) : value;
      t.h = Reverse ? forward * s.difference() : s.difference();
    }
    if (Reverse) {
      const F value = s.big * select(s.below, s.psi, phi);
      t.value = t.value + (Forward ? select(reverse > F(0.0f), reverse * value, F(0.0f)) : value);
      t.h = t.h + (Forward ? reverse * v.q : v.q) * finite(v.d);
    }
    return t;
  }
};

// h - q sum h of a far row, times what the gradient is scaled by; the row's value is known from the first sweep. `d`
// comes less its mean under q, taken from the sum of the very same floats, so that it vanishes where q is certain.
template <class F, bool Forward, bool Reverse> struct KlGradient {
  F of_student, of_teacher, of_log_ratio;  // factors of the exponentials, not yet normalised, and of d

  KD_HD F operator()(F e_s, F e_t, F d_less_mean) const {
    F g = of_student;
    if (Reverse) g = Forward ? fma(d_less_mean, of_log_ratio, of_student) : d_less_mean * of_log_ratio;
    g = e_s * g;
    return Forward ? fma(e_t, of_teacher, g) : g;
  }
};

KD_END
