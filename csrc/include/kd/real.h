// The arithmetic vocabulary of the pointwise maths, for one real number. The SIMD types of csrc/cpu give the same names
// for 8 or 16 of them, so that a divergence is written once for scalars, vectors and CUDA threads.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "kd/config.h"

KD_BEGIN

template <class F> struct Traits;  // of a lane type: its scalar, its lanes

template <> struct Traits<float> {
  using Scalar = float;
  static constexpr int kLanes = 1;
};

template <> struct Traits<double> {
  using Scalar = double;
  static constexpr int kLanes = 1;
};

template <class F> using ScalarOf = typename Traits<F>::Scalar;

// Natural against binary logarithms, in the precision of F.
template <class F> KD_HD F ln2() { return F(ScalarOf<F>(0.69314718055994530942)); }
template <class F> KD_HD F log2_e() { return F(ScalarOf<F>(1.44269504088896340736)); }

// Exponentials are powers of 2 in single precision, the one every target has an instruction or two for, and of e in
// double, where a temperature of 1 then leaves z - top unrounded.
template <class S> constexpr double kLnBase = 0.69314718055994530942;
template <> inline constexpr double kLnBase<double> = 1;

// e^-x is zero beside 1 from here on, and 2^(-x log2 e) is still a normal number.
template <class S> constexpr S kFarDecay = S(87);
template <> inline constexpr double kFarDecay<double> = 708;

KD_HD float fma(float a, float b, float c) { return std::fmaf(a, b, c); }
KD_HD double fma(double a, double b, double c) { return std::fma(a, b, c); }
KD_HD float fnma(float a, float b, float c) { return std::fmaf(-a, b, c); }  // c - a b, one rounding
KD_HD double fnma(double a, double b, double c) { return std::fma(-a, b, c); }
KD_HD float abs(float a) { return std::fabs(a); }
KD_HD double abs(double a) { return std::fabs(a); }
// Of a NaN and a number a processor gives the second argument, a GPU the number.
KD_HD float max(float a, float b) {
#ifdef __CUDA_ARCH__
  return fmaxf(a, b);
#else
  return a > b ? a : b;
#endif
}
KD_HD double max(double a, double b) { return a > b ? a : b; }
KD_HD float min(float a, float b) {
#ifdef __CUDA_ARCH__
  return fminf(a, b);
#else
  return a < b ? a : b;
#endif
}
KD_HD double min(double a, double b) { return a < b ? a : b; }
KD_HD float select(bool m, float a, float b) { return m ? a : b; }
KD_HD double select(bool m, double a, double b) { return m ? a : b; }
KD_HD uint32_t mask_bits(bool m) { return m; }
KD_HD float add_where(bool m, float a, float b) { return m ? a + b : a; }
KD_HD double add_where(bool m, double a, double b) { return m ? a + b : a; }
// Conversions between integers and floats are as slow on a GPU as exponentials. There the sum with 3 * 2^22 has a small
// integer in its low bits.
constexpr float kIntegerInLowBits = 12582912.0f;

KD_HD float round(float a) {  // |a| < 2^22
#ifdef __CUDA_ARCH__
  return (a + kIntegerInLowBits) - kIntegerInLowBits;
#else
  return std::rintf(a);
#endif
}

// A quotient need not be rounded to the last bit. The divisor is at most 2^126.
template <class F> KD_HD F divide(F a, F b) { return a / b; }

// Where a GPU has an instruction for it, that: relative errors of 2^-22 (of a logarithm near 0 absolute), denormals 0.
KD_HD float exp2(float a) {
#ifdef __CUDA_ARCH__
  float r;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(a));
  return r;
#else
  return std::exp2(a);
#endif
}
KD_HD float log2(float a) {
#ifdef __CUDA_ARCH__
  float r;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(a));
  return r;
#else
  return std::log2(a);
#endif
}
#ifdef __CUDA_ARCH__
template <> KD_HD float divide(float a, float b) { return __fdividef(a, b); }
#endif

// The power of that base. Of a finite x it may cost less: that one may give NaN for -inf.
template <class F> KD_HD F power(F x) { return exp2(x); }
template <> KD_HD double power(double x) { return std::exp(x); }
template <class F> KD_HD F power_of_finite(F x) { return exp2_of_finite(x); }
template <> KD_HD float power_of_finite(float x) { return exp2(x); }
template <> KD_HD double power_of_finite(double x) { return std::exp(x); }

// 2^n for an integral n in [-126, 127].
KD_HD float pow2(float n) {
#ifdef __CUDA_ARCH__
  return __int_as_float((__float_as_int(n + kIntegerInLowBits) << 23) + 0x3f800000);
#else
  const uint32_t bits = static_cast<uint32_t>(static_cast<int32_t>(n) + 127) << 23;
  float r;
  std::memcpy(&r, &bits, 4);
  return r;
#endif
}

// floor(log2(a)) for a normal a > 0.
KD_HD float exponent(float a) {
#ifdef __CUDA_ARCH__
  return __int_as_float((__float_as_int(a) >> 23) + (__float_as_int(kIntegerInLowBits) - 127)) - kIntegerInLowBits;
#else
  uint32_t bits;
  std::memcpy(&bits, &a, 4);
  return static_cast<float>(static_cast<int32_t>(bits >> 23) - 127);
#endif
}

KD_END
