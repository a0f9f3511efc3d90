// Divergences row by row: what one row needs.
#pragma once

#include "kd/rows.h"

namespace kd {

// Entries from one row of scratch to the next: room for the columns and a register more, on whole cache lines.
inline int64_t scratch_row(int64_t columns) { return (columns + 127) / 64 * 64; }

// Computes row `row`: value[row] = weight scale D, and the gradient row times weight scale upstream gradient_scale. The
// gradient may overwrite the student's logits. `scratch` holds kScratchRows rows of Real.
using RowFunction = void (*)(const RowsCall& call, int64_t row, double gradient_scale, void* scratch);
constexpr int kScratchRows = 6;

// One per instruction set; null where the pair of dtypes is not supported.
RowFunction row_function_scalar(DType student, DType teacher);
RowFunction row_function_avx2(DType student, DType teacher);
RowFunction row_function_avx512(DType student, DType teacher);

}  // namespace kd
