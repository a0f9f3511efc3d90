// The tail of a row, that is, its entries outside a list: what a caller hands over, and what one row needs.
#pragma once

#include <cstddef>

#include "rows.h"

namespace kd {

struct TailCall {
  int64_t rows;
  int64_t columns;  // entries that count, from the first
  int64_t width;    // entries a gradient row has; it is zero from `columns` on
  int64_t slots;    // of a row's list
  Matrix logits;
  Matrix gradient;          // of the logits' dtype, may be the logits; data null: the tails are wanted
  const int64_t* ids;       // [rows, slots]; distinct within a row, or outside [0, columns) for an empty slot
  const void* weight;       // Real[rows] or null; a row of weight 0 is not read
  void* tail;               // Real[rows]: log sum exp(z inverse_temperature) over the tail; a gradient reads it
  const void* entries;      // Real[rows, slots]: gradient of the listed entries
  const void* tail_factor;  // Real[rows]: sum of the gradient over the tail
  double inverse_temperature;
};  // Real is double for float64 logits, else float

// Computes row `row`: tail[row], or the gradient row. `scratch` holds tail_scratch_bytes.
using TailFunction = void (*)(const TailCall& call, int64_t row, void* scratch);

// A bit for each column, and room for a register's worth of them more.
inline size_t tail_scratch_bytes(int64_t columns) { return size_t(columns + 1023) / 512 * 64; }

// One per instruction set; null where the dtype is not supported.
TailFunction tail_function_scalar(DType dtype);
TailFunction tail_function_avx2(DType dtype);
TailFunction tail_function_avx512(DType dtype);

}  // namespace kd
