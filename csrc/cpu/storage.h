// Element types of the tensors, and how one of them becomes a real number and back.
#pragma once

#include "kd/real.h"

KD_BEGIN

struct BFloat16 {
  uint16_t bits;
};

struct Half {
  uint16_t bits;
};

KD_HD uint32_t bits_of(float x) {
  uint32_t u;
  std::memcpy(&u, &x, 4);
  return u;
}

KD_HD float from_bits(uint32_t u) {
  float x;
  std::memcpy(&x, &u, 4);
  return x;
}

KD_HD float widen(float x) { return x; }
KD_HD double widen(double x) { return x; }
KD_HD float widen(BFloat16 x) { return from_bits(static_cast<uint32_t>(x.bits) << 16); }

// Half's exponent field, moved up, is 112 short of float's; the product with 2^112 mends it, subnormals included.
KD_HD float widen(Half x) {
  const uint32_t magnitude = static_cast<uint32_t>(x.bits & 0x7fffu) << 13;
  const uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000u) << 16;
  const float special = from_bits(magnitude + (112u << 23) + (112u << 23));  // inf and NaN: exponent 31 -> 255
  const float finite = from_bits(magnitude) * 5.192296858534828e33f;         // 2^112
  return from_bits(bits_of(magnitude >= 0x0f800000u ? special : finite) | sign);
}

KD_HD void narrow(float x, float* out) { *out = x; }
KD_HD void narrow(double x, double* out) { *out = x; }

// Round to nearest, ties to even.
KD_HD void narrow(float x, BFloat16* out) {
  const uint32_t u = bits_of(x);
  const uint32_t rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
  out->bits = static_cast<uint16_t>(x != x ? 0x7fc0u : rounded);
}

KD_HD void narrow(float x, Half* out) {
  const uint32_t u = bits_of(x);
  const uint32_t sign = (u >> 16) & 0x8000u;
  const float a = abs(x);
  uint32_t magnitude;
  if (x != x) {
    magnitude = 0x7e00u;
  } else if (a >= 65520.0f) {
    magnitude = 0x7c00u;
  } else if (a < 6.103515625e-05f) {  // subnormal: adding 1/2 leaves the multiple of 2^-24 in the low bits
    magnitude = bits_of(a + 0.5f) - bits_of(0.5f);
  } else {
    const uint32_t v = bits_of(a) - (112u << 23);
    magnitude = (v + 0xfffu + ((v >> 13) & 1u)) >> 13;
  }
  out->bits = static_cast<uint16_t>(sign | magnitude);
}

// Loads, stores and reductions of a lane type: here of one real number, in the SIMD headers of their registers. With a
// count, only the first `count` elements are touched, and the other lanes of a load are `fill`.
template <class F> struct Lanes {
  template <class T> static KD_HD F load(const T* p) { return widen(*p); }
  template <class T> static KD_HD F load(const T* p, int count, F fill) { return count > 0 ? widen(*p) : fill; }
  template <class T> static KD_HD void store(T* p, F x) { narrow(x, p); }
  template <class T> static KD_HD void store(T* p, F x, int count) {
    if (count > 0) narrow(x, p);
  }
  // The lanes whose bits are set, the first lane's being the lowest.
  static KD_HD bool mask_of(uint32_t bits) { return bits & 1; }
  // Writes the chosen lanes side by side; p has room for all. Returns how many there were.
  static KD_HD int compress(F* p, bool m, F x) {
    *p = x;
    return m;
  }
};

KD_HD float reduce_add(float x) { return x; }
KD_HD double reduce_add(double x) { return x; }
KD_HD float reduce_max(float x) { return x; }
KD_HD double reduce_max(double x) { return x; }

template <class F> KD_HD void reduce_add8(const F (&a)[8], ScalarOf<F>* out) {
  for (int i = 0; i < 8; ++i) out[i] = reduce_add(a[i]);
}

KD_END
