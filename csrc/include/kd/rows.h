// Divergences row by row: what a caller hands over, to the CPU and to a GPU.
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

}  // namespace kd
