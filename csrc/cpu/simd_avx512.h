// Sixteen floats in one AVX-512 register (F, BW, DQ, VL).
#pragma once

#include <immintrin.h>

#include "storage.h"

KD_BEGIN

struct F32x16 {
  __m512 v;
  KD_HD F32x16() = default;
  KD_HD F32x16(__m512 x) : v(x) {}
  KD_HD explicit F32x16(float x) : v(_mm512_set1_ps(x)) {}
};

struct Mask16 {  // a type of this namespace, so that the templates find the functions that take it
  __mmask16 v;
};

template <> struct Traits<F32x16> {
  using Scalar = float;
  static constexpr int kLanes = 16;
};

KD_HD F32x16 operator+(F32x16 a, F32x16 b) { return _mm512_add_ps(a.v, b.v); }
KD_HD F32x16 operator-(F32x16 a, F32x16 b) { return _mm512_sub_ps(a.v, b.v); }
KD_HD F32x16 operator*(F32x16 a, F32x16 b) { return _mm512_mul_ps(a.v, b.v); }
KD_HD F32x16 operator/(F32x16 a, F32x16 b) { return _mm512_div_ps(a.v, b.v); }
KD_HD Mask16 operator<(F32x16 a, F32x16 b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ)}; }
KD_HD Mask16 operator<=(F32x16 a, F32x16 b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_LE_OQ)}; }
KD_HD Mask16 operator>(F32x16 a, F32x16 b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_GT_OQ)}; }
KD_HD Mask16 operator==(F32x16 a, F32x16 b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_EQ_OQ)}; }

KD_HD F32x16 fma(F32x16 a, F32x16 b, F32x16 c) { return _mm512_fmadd_ps(a.v, b.v, c.v); }
KD_HD F32x16 fnma(F32x16 a, F32x16 b, F32x16 c) { return _mm512_fnmadd_ps(a.v, b.v, c.v); }
KD_HD F32x16 abs(F32x16 a) { return _mm512_abs_ps(a.v); }
KD_HD F32x16 max(F32x16 a, F32x16 b) { return _mm512_max_ps(a.v, b.v); }
KD_HD F32x16 min(F32x16 a, F32x16 b) { return _mm512_min_ps(a.v, b.v); }
KD_HD F32x16 select(Mask16 m, F32x16 a, F32x16 b) { return _mm512_mask_blend_ps(m.v, b.v, a.v); }
KD_HD F32x16 add_where(Mask16 m, F32x16 a, F32x16 b) { return _mm512_mask_add_ps(a.v, m.v, a.v, b.v); }
KD_HD F32x16 round(F32x16 a) { return _mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT); }
KD_HD F32x16 pow2(F32x16 n) { return _mm512_scalef_ps(_mm512_set1_ps(1.0f), n.v); }
KD_HD F32x16 exponent(F32x16 a) { return _mm512_getexp_ps(a.v); }
KD_HD uint32_t mask_bits(Mask16 m) { return m.v; }

// 2^(i / 32).
alignas(64) constexpr float kExp2Table[32] = {
    1.0f,        1.0218972f,  1.04427373f, 1.06714046f, 1.09050775f, 1.1143868f,  1.13878858f, 1.1637249f,
    1.18920708f, 1.21524739f, 1.24185777f, 1.26905096f, 1.29683959f, 1.32523668f, 1.35425556f, 1.38390994f,
    1.41421354f, 1.44518077f, 1.47682619f, 1.50916445f, 1.54221082f, 1.5759809f,  1.61049032f, 1.64575553f,
    1.68179286f, 1.71861935f, 1.75625217f, 1.79470909f, 1.8340081f,  1.87416768f, 1.91520655f, 1.95714414f};

// 2^a for a finite a: 2^floor(n) 2^(n - floor(n)) 2^r, n the nearest multiple of 1/32. The second factor comes from the
// table, the third is 1 + r (c1 + c2 r), minimax on |r| <= 1/64, relative error 5.4e-8, exactly 1 for r = 0. Adding
// 3 2^17 leaves n in the low bits of the sum; where a is too large for that, it is so for a float 2^a too.
KD_HD F32x16 exp2_of_finite(F32x16 a) {
  const F32x16 shift(393216.0f);
  const F32x16 t = a + shift, n = t - shift, r = a - n;
  const F32x16 table =
      _mm512_permutex2var_ps(_mm512_load_ps(kExp2Table), _mm512_castps_si512(t.v), _mm512_load_ps(kExp2Table + 16));
  const F32x16 u = fma(r, F32x16(0.240226497f), F32x16(0.693157330f)) * r;
  return _mm512_scalef_ps(fma(table, u, table).v, n.v);
}

// -1000 stands for -inf, as the first operand, because VMAXPS returns the second where one is NaN.
KD_HD F32x16 exp2(F32x16 a) { return exp2_of_finite(max(F32x16(-1000.0f), a)); }

KD_HD float reduce_add(F32x16 a) { return _mm512_reduce_add_ps(a.v); }

// Eight sums at once: of pairs of registers, of pairs of those, and of the four quarters that are left.
KD_HD void reduce_add8(const F32x16 (&a)[8], float* out) {
  __m512 quads[2];
  for (int i = 0; i < 2; ++i) {
    const F32x16* x = a + 4 * i;
    const __m512 low = _mm512_add_ps(_mm512_unpacklo_ps(x[0].v, x[1].v), _mm512_unpackhi_ps(x[0].v, x[1].v));
    const __m512 high = _mm512_add_ps(_mm512_unpacklo_ps(x[2].v, x[3].v), _mm512_unpackhi_ps(x[2].v, x[3].v));
    const __m512d l = _mm512_castps_pd(low), h = _mm512_castps_pd(high);
    quads[i] = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(l, h)), _mm512_castpd_ps(_mm512_unpackhi_pd(l, h)));
  }
  const __m512 even = _mm512_shuffle_f32x4(quads[0], quads[1], 0x88);  // quarters 0 and 2 of both
  const __m512 odd = _mm512_shuffle_f32x4(quads[0], quads[1], 0xdd);
  const __m512 halves = _mm512_add_ps(even, odd);
  const __m512 swapped = _mm512_shuffle_f32x4(halves, halves, 0xb1);
  const __m512 sums = _mm512_add_ps(halves, swapped);  // quarter 0: the first four, quarter 2: the others
  _mm_storeu_ps(out, _mm512_castps512_ps128(sums));
  _mm_storeu_ps(out + 4, _mm512_extractf32x4_ps(sums, 2));
}

KD_HD float reduce_max(F32x16 a) { return _mm512_reduce_max_ps(a.v); }

KD_HD __mmask16 first_lanes(int count) { return static_cast<__mmask16>((1u << count) - 1u); }

template <> struct Lanes<F32x16> {
  static KD_HD F32x16 load(const float* p) { return _mm512_loadu_ps(p); }
  static KD_HD F32x16 load(const BFloat16* p) {
    return widen_bf16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static KD_HD F32x16 load(const Half* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static KD_HD F32x16 load(const float* p, int count, float fill) {
    return _mm512_mask_loadu_ps(_mm512_set1_ps(fill), first_lanes(count), p);
  }
  static KD_HD F32x16 load(const BFloat16* p, int count, float fill) {
    const __mmask16 m = first_lanes(count);
    return select(Mask16{m}, widen_bf16(_mm256_maskz_loadu_epi16(m, p)), F32x16(fill));
  }
  static KD_HD F32x16 load(const Half* p, int count, float fill) {
    const __mmask16 m = first_lanes(count);
    return select(Mask16{m}, _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(m, p)), F32x16(fill));
  }

  static KD_HD void store(float* p, F32x16 x) { _mm512_storeu_ps(p, x.v); }
  static KD_HD void store(BFloat16* p, F32x16 x) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrow_bf16(x)); }
  static KD_HD void store(Half* p, F32x16 x) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(x.v, _MM_FROUND_TO_NEAREST_INT));
  }
  static KD_HD void store(float* p, F32x16 x, int count) { _mm512_mask_storeu_ps(p, first_lanes(count), x.v); }
  static KD_HD void store(BFloat16* p, F32x16 x, int count) {
    _mm256_mask_storeu_epi16(p, first_lanes(count), narrow_bf16(x));
  }
  static KD_HD void store(Half* p, F32x16 x, int count) {
    _mm256_mask_storeu_epi16(p, first_lanes(count), _mm512_cvtps_ph(x.v, _MM_FROUND_TO_NEAREST_INT));
  }

  static KD_HD Mask16 mask_of(uint32_t bits) { return {static_cast<__mmask16>(bits)}; }
  static KD_HD int compress(float* p, Mask16 m, F32x16 x) {
    _mm512_storeu_ps(p, _mm512_maskz_compress_ps(m.v, x.v));
    return __builtin_popcount(m.v);
  }

 private:
  static KD_HD F32x16 widen_bf16(__m256i x) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16));
  }
  // Round to nearest even on the bits. A NaN that came from a bfloat16 has 16 zero bits below and cannot overflow.
  static KD_HD __m256i narrow_bf16(F32x16 x) {
    const __m512i u = _mm512_castps_si512(x.v);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
    const __m512i r = _mm512_add_epi32(_mm512_add_epi32(u, _mm512_set1_epi32(0x7fff)), odd);
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(r, 16));
  }
};

KD_END
