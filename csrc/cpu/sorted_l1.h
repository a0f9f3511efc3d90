// Distances between distributions sorted in descending order.
#pragma once

#include <cstddef>

#include "rows.h"

namespace kd {

struct SortedCall {
  int64_t rows, student_columns, teacher_columns;
  int64_t limit;  // ranks that count
  Matrix student, teacher;
  const void* factor;  // Real[rows] or null, what gradients are multiplied by; a row of factor 0 is not read
  double inverse_temperature_student, inverse_temperature_teacher;
  void* loss;      // Real[rows]
  void* gradient;  // [rows][student_columns] of the student's dtype, or null
};  // Real is double for float64 logits, else float

using SortedFunction = void (*)(const SortedCall& call, int64_t row, void* scratch);

// Twice a row of the student as (key, column), twice a row of the teacher's keys, and both rows' probabilities.
inline size_t sorted_scratch(const SortedCall& call) {
  const size_t item = call.student.dtype == DType::kFloat64 ? sizeof(double) : sizeof(float);
  const size_t s = size_t(scratch_row(call.student_columns)), t = size_t(scratch_row(call.teacher_columns));
  return item * (3 * s + 3 * t) + 2 * sizeof(uint32_t) * s;
}

SortedFunction sorted_function_scalar(DType student, DType teacher);
SortedFunction sorted_function_avx2(DType student, DType teacher);
SortedFunction sorted_function_avx512(DType student, DType teacher);

}  // namespace kd
