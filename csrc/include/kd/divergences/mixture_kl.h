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

// Far: with w = m / big, log(big / m) = -log w and log(small / m) = -x - log w. The sum of m - a = 0 is added as in the
// near form: rounding of the probabilities then counts for little.
template <class F, bool OfStudent> struct LogMixtureKl {
  F b, rest;

  KD_HD Term<F> operator()(const LogSides<F>& v) const {
    const F of_q = select(v.below, b * v.ratio, b);  // b q / big
    const F w = of_q + select(v.below, rest, rest * v.ratio), log_w = log2(w);
    const F share = divide(of_q, w);  // b q / m
    const bool of_big = v.below != OfStudent;
    const F a = select(of_big, F(1.0f), v.ratio);  // over big
    const F a_log = -ln2<F>() * a * (log_w + select(of_big, F(0.0f), v.x));
    const F h = OfStudent ? fma(a, b - share, a_log) : -a * share;
    return {v.big * (a_log + (w - a)), v.big * h};
  }
};

KD_END
