// The one matrix product that no library at hand has on CPUs: bfloat16 factors, float32 sum.
#pragma once

#include <cstdint>

namespace kd {

// sum = gain G^T X, or sum += gain G^T X; products of two rows at a time, added in float32.
struct OuterProduct {
  int64_t rows, columns, width;
  const uint16_t* g;  // (rows, columns) bfloat16
  int64_t g_stride;
  const uint16_t* x;  // (rows, width) bfloat16
  int64_t x_stride;
  float* sum;  // (columns, width)
  int64_t sum_stride;
  float gain;
  bool add;
};

// Whether this processor has the instructions (AVX512-BF16).
bool has_outer_product();

// On at most `threads` threads, whose number does not change the bits of the result. Throws std::bad_alloc.
void outer_product(const OuterProduct& product, int threads);

}  // namespace kd
