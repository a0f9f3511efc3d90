// The two elementary functions the divergences need, in the form that keeps every digit where teacher and student
// agree: a loss there is a sum of terms O(d^2), d = log q - log p, and 1 + x - x would lose them.
#pragma once

#include "kd/real.h"

KD_BEGIN

template <class F> struct Decay {  // each to relative precision
  F exp;                           // e^-x
  F expm1;                         // e^-x - 1
  F phi;                           // e^-x - 1 + x, ~ x^2 / 2 for small x
};

// For 0 <= x <= kFarDecay. With -x = n ln2 + r, |r| <= ln2 / 2, and e^r = 1 + r + r^2 Q(r) (Q minimax of degree 4,
// relative error 1.3e-7), all three are sums without cancellation; n = 0 leaves r = -x exactly.
template <class F> KD_HD Decay<F> decay(F x) {
  const F n = round(F(0.0f) - x * log2_e<F>());
  F r = fnma(n, F(0.693359375f), F(0.0f) - x);
  r = fnma(n, F(-2.12194440e-4f), r);
  F q = fma(r, F(0.00139050209f), F(0.00836296938f));
  q = fma(r, q, F(0.0416667685f));
  q = fma(r, q, F(0.166665792f));
  q = fma(r, q, F(0.5f));
  const F rr = r * r * q;
  const F s = pow2(n);
  const F s1 = s - F(1.0f);
  return {fma(s, r + rr, s), fma(s, r + rr, s1), fma(s, rr, fma(s1, r + F(1.0f), r + x))};
}

template <> KD_HD Decay<double> decay(double x) {
  const double e = std::expm1(-x);
  return {std::exp(-x), e, max(e + x, 0.0)};
}

template <class F> struct Log1p {
  F value;  // log(1 + y)
  F gap;    // y - log(1 + y), to relative precision: ~ y^2 / 2 for small y
};

// f - log(1 + f) = f^2 R(f) on [sqrt(1/2) - 1, sqrt(2) - 1], R minimax of degree 8, relative error 6.4e-8.
template <class F> KD_HD F log_bend(F f) {
  F r = fma(f, F(0.0750829875f), F(-0.127630308f));
  r = fma(f, r, F(0.13201119f));
  r = fma(f, r, F(-0.142029911f));
  r = fma(f, r, F(0.166196704f));
  r = fma(f, r, F(-0.20001173f));
  r = fma(f, r, F(0.250009656f));
  r = fma(f, r, F(-0.333333313f));
  r = fma(f, r, F(0.5f));
  return f * f * r;
}

// For y > -1. y itself is f where 1 + y needs no scaling, so that nothing is lost for small y.
template <class F> KD_HD Log1p<F> log1p(F y) {
  const F u = max(y + F(1.0f), F(1.17549435e-38f));
  const F n = exponent(u * F(1.41421356f));
  const auto near = n == F(0.0f);
  const F f = select(near, y, fma(u, pow2(F(0.0f) - n), F(-1.0f)));
  const F bend = log_bend(f);
  const F value = fma(n, ln2<F>(), f - bend);
  return {value, select(near, bend, y - value)};
}

template <> KD_HD Log1p<double> log1p(double y) {
  const double value = std::log1p(max(y, -1.0 + 2.3e-16));
  return {value, max(y - value, 0.0)};
}

// log(a) for a normal a > 0, to 1e-7 absolute where a is near 1 and relative elsewhere.
template <class F> KD_HD F log(F a) {
  const F n = exponent(a * F(1.41421356f));
  const F f = fma(a, pow2(F(0.0f) - n), F(-1.0f));
  return fma(n, ln2<F>(), f - log_bend(f));
}

template <> KD_HD double log(double a) { return std::log(a); }

KD_END
