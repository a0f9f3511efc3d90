#define KD_ISA avx512
#include "simd_avx512.h"
#include "transport_dispatch.h"

kd::SinkhornFunction kd::sinkhorn_function_avx512(DType cost) { return sinkhorn_function<F32x16>(cost); }

kd::SinkhornBackwardFunction kd::sinkhorn_backward_function_avx512(DType cost) {
  return sinkhorn_backward_function<F32x16>(cost);
}

kd::L1Functions kd::l1_functions_avx512(DType student, DType teacher) { return l1_functions<F32x16>(student, teacher); }

kd::SortedFunction kd::sorted_function_avx512(DType student, DType teacher) {
  return sorted_function<F32x16>(student, teacher);
}
