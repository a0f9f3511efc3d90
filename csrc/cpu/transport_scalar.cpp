// Any processor; and float64, which asks for accuracy rather than speed.
#define KD_ISA scalar
#include "transport_dispatch.h"

kd::SinkhornFunction kd::sinkhorn_function_scalar(DType cost) {
  return cost == DType::kFloat64 ? solve_sinkhorn<double, double> : sinkhorn_function<float>(cost);
}

kd::SinkhornBackwardFunction kd::sinkhorn_backward_function_scalar(DType cost) {
  return cost == DType::kFloat64 ? reverse_sinkhorn<double, double> : sinkhorn_backward_function<float>(cost);
}

kd::L1Functions kd::l1_functions_scalar(DType student, DType teacher) {
  if (student != DType::kFloat64) return l1_functions<float>(student, teacher);
  return teacher == DType::kFloat64 ? l1_functions_of<double, double, double>() : L1Functions{};
}

kd::SortedFunction kd::sorted_function_scalar(DType student, DType teacher) {
  if (student != DType::kFloat64) return sorted_function<float>(student, teacher);
  return teacher == DType::kFloat64 ? SortedRow<double, double, double>::run : nullptr;
}
