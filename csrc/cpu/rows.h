// Divergences row by row: what a caller hands over, and what one row needs.
#pragma once

#include <cstdint>

#include "kd/dtype.h"

namespace kd {

// What the compiled kernels run; a public kind is a family with parameters.
enum class Family : int {
  kKl = 0,              // params: weight of KL(p, q), weight of KL(q, p)
  kAkl = 1,             // params: mu
  kJsd = 2,             // params: beta
  kTeacherMixture = 3,  // params: b, KL(p, (1 - b) p + b q)
  kStudentMixture = 4,  // params: b, KL(q, (1 - b) p + b q)
  kTvd = 5,
  kTodi = 6,  // params: beta
};

struct Matrix {  // rows of contiguous entries
  void* data;
  int64_t row_stride;  // in elements
  DType dtype;
};

struct RowsCall {
  int64_t rows;
  int64_t columns;  // entries that count, from the first
  int64_t width;    // entries a gradient row has; it is zero from `columns` on
  Matrix student, teacher;
  Matrix grad;            // of the student's dtype; data null: values only
  const void* weight;     // Real[rows] or null; a row of weight 0 is not read
  const void* upstream;   // Real[rows] or null: gradient with respect to each row's value
  void* value;            // Real[rows]; null where a reduced loss alone is wanted
  void* student_entropy;  // Real[rows] or null, in nats
  void* teacher_entropy;
  double inverse_temperature_student, inverse_temperature_teacher;
  double scale;  // of values and gradients
  Family family;
  double params[2];
};  // Real is double for float64 logits, else float

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
