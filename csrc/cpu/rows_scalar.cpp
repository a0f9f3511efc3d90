// Any processor; and float64, which asks for accuracy rather than speed.
#define KD_ISA scalar
#include "row_kernel.h"
#include "slice_kernel.h"
#include "tail.h"

kd::RowFunction kd::row_function_scalar(DType student, DType teacher) {
  if (student == DType::kFloat64) return teacher == DType::kFloat64 ? run_row<double, double, double> : nullptr;
  return row_function<float>(student, teacher);
}

kd::TailFunction kd::tail_function_scalar(DType dtype) {
  return dtype == DType::kFloat64 ? run_tail_row<double, double> : tail_function<float>(dtype);
}

kd::SliceFunction kd::slice_function_scalar(DType student, DType teacher) {
  if (student == DType::kFloat64) return teacher == DType::kFloat64 ? run_slice_row<double, double, double> : nullptr;
  return slice_function<float>(student, teacher);
}
