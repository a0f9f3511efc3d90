// Eight floats in one AVX2 register (AVX2, FMA, F16C).
#pragma once

#include <immintrin.h>

#include "storage.h"

KD_BEGIN

struct F32x8 {
  __m256 v;
  KD_HD F32x8() = default;
  KD_HD F32x8(__m256 x) : v(x) {}
  KD_HD explicit F32x8(float x) : v(_mm256_set1_ps(x)) {}
};

struct Mask8 {
  __m256 v;
};

template <> struct Traits<F32x8> {
  using Scalar = float;
  static constexpr int kLanes = 8;
};

KD_HD F32x8 operator+(F32x8 a, F32x8 b) { return _mm256_add_ps(a.v, b.v); }
KD_HD F32x8 operator-(F32x8 a, F32x8 b) { return _mm256_sub_ps(a.v, b.v); }
KD_HD F32x8 operator*(F32x8 a, F32x8 b) { return _mm256_mul_ps(a.v, b.v); }
KD_HD F32x8 operator/(F32x8 a, F32x8 b) { return _mm256_div_ps(a.v, b.v); }
KD_HD Mask8 operator<(F32x8 a, F32x8 b) { return {_mm256_cmp_ps(a.v, b.v, _CMP_LT_OQ)}; }
KD_HD Mask8 operator<=(F32x8 a, F32x8 b) { return {_mm256_cmp_ps(a.v, b.v, _CMP_LE_OQ)}; }
KD_HD Mask8 operator>(F32x8 a, F32x8 b) { return {_mm256_cmp_ps(a.v, b.v, _CMP_GT_OQ)}; }
KD_HD Mask8 operator==(F32x8 a, F32x8 b) { return {_mm256_cmp_ps(a.v, b.v, _CMP_EQ_OQ)}; }

KD_HD F32x8 fma(F32x8 a, F32x8 b, F32x8 c) { return _mm256_fmadd_ps(a.v, b.v, c.v); }
KD_HD F32x8 fnma(F32x8 a, F32x8 b, F32x8 c) { return _mm256_fnmadd_ps(a.v, b.v, c.v); }
KD_HD F32x8 abs(F32x8 a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a.v); }
KD_HD F32x8 max(F32x8 a, F32x8 b) { return _mm256_max_ps(a.v, b.v); }
KD_HD F32x8 min(F32x8 a, F32x8 b) { return _mm256_min_ps(a.v, b.v); }
KD_HD F32x8 select(Mask8 m, F32x8 a, F32x8 b) { return _mm256_blendv_ps(b.v, a.v, m.v); }
KD_HD F32x8 add_where(Mask8 m, F32x8 a, F32x8 b) { return _mm256_add_ps(a.v, _mm256_and_ps(m.v, b.v)); }
KD_HD F32x8 round(F32x8 a) { return _mm256_round_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
KD_HD uint32_t mask_bits(Mask8 m) { return static_cast<uint32_t>(_mm256_movemask_ps(m.v)); }

KD_HD F32x8 pow2(F32x8 n) {
  const __m256i e = _mm256_add_epi32(_mm256_cvtps_epi32(n.v), _mm256_set1_epi32(127));
  return _mm256_castsi256_ps(_mm256_slli_epi32(e, 23));
}

KD_HD F32x8 exponent(F32x8 a) {
  const __m256i e = _mm256_srli_epi32(_mm256_castps_si256(a.v), 23);
  return _mm256_cvtepi32_ps(_mm256_sub_epi32(e, _mm256_set1_epi32(127)));
}

// 2^a = 2^floor(a) P(a - floor(a)), P minimax of degree 6 with P(0) = 1, relative error 1.1e-7. The power of two is
// built from its bits: below 2^-126 the result is 0, -inf included.
KD_HD F32x8 exp2(F32x8 a) {
  const F32x8 n = _mm256_floor_ps(a.v);
  const F32x8 f = a - n;
  F32x8 p = fma(f, F32x8(0.000218761663f), F32x8(0.00124221062f));
  p = fma(f, p, F32x8(0.00967644248f));
  p = fma(f, p, F32x8(0.0554871634f));
  p = fma(f, p, F32x8(0.240228251f));
  p = fma(f, p, F32x8(0.693147182f));
  p = fma(f, p, F32x8(1.0f));
  return select(a < F32x8(-126.0f), F32x8(0.0f), p * pow2(min(n, F32x8(128.0f))));
}

KD_HD F32x8 exp2_of_finite(F32x8 a) { return exp2(a); }

KD_HD float reduce_add(F32x8 a) {
  __m128 x = _mm_add_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
  x = _mm_add_ps(x, _mm_movehl_ps(x, x));
  return _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)));
}

KD_HD float reduce_max(F32x8 a) {
  __m128 x = _mm_max_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
  x = _mm_max_ps(x, _mm_movehl_ps(x, x));
  return _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)));
}

template <> struct Lanes<F32x8> {
  static KD_HD F32x8 load(const float* p) { return _mm256_loadu_ps(p); }
  static KD_HD F32x8 load(const BFloat16* p) {
    const __m128i x = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(x), 16));
  }
  static KD_HD F32x8 load(const Half* p) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  template <class T> static KD_HD F32x8 load(const T* p, int count, float fill) {
    alignas(32) float lanes[8];
    for (int i = 0; i < 8; ++i) lanes[i] = i < count ? widen(p[i]) : fill;
    return _mm256_load_ps(lanes);
  }

  static KD_HD void store(float* p, F32x8 x) { _mm256_storeu_ps(p, x.v); }
  static KD_HD void store(BFloat16* p, F32x8 x) {
    const __m256i u = _mm256_castps_si256(x.v);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
    const __m256i r = _mm256_add_epi32(_mm256_add_epi32(u, _mm256_set1_epi32(0x7fff)), odd);
    const __m256i high = _mm256_srli_epi32(r, 16);
    const __m128i packed = _mm_packus_epi32(_mm256_castsi256_si128(high), _mm256_extracti128_si256(high, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), packed);
  }
  static KD_HD void store(Half* p, F32x8 x) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(x.v, _MM_FROUND_TO_NEAREST_INT));
  }
  template <class T> static KD_HD void store(T* p, F32x8 x, int count) {
    alignas(32) float lanes[8];
    _mm256_store_ps(lanes, x.v);
    for (int i = 0; i < count; ++i) narrow(lanes[i], p + i);
  }

  static KD_HD Mask8 mask_of(uint32_t bits) {
    const __m256i lane = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    const __m256i x = _mm256_and_si256(_mm256_set1_epi32(static_cast<int>(bits)), lane);
    return {_mm256_castsi256_ps(_mm256_cmpeq_epi32(x, lane))};
  }
  static KD_HD int compress(float* p, Mask8 m, F32x8 x) {
    alignas(32) float lanes[8];
    _mm256_store_ps(lanes, x.v);
    int n = 0;
    for (uint32_t bits = mask_bits(m); bits != 0; bits &= bits - 1) p[n++] = lanes[__builtin_ctz(bits)];
    return n;
  }
};

KD_END
