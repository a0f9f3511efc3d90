#define KD_ISA avx2
#include "simd_avx2.h"
#include "transport_dispatch.h"

kd::SinkhornFunction kd::sinkhorn_function_avx2(DType cost) { return sinkhorn_function<F32x8>(cost); }

kd::SinkhornBackwardFunction kd::sinkhorn_backward_function_avx2(DType cost) {
  return sinkhorn_backward_function<F32x8>(cost);
}

kd::L1Functions kd::l1_functions_avx2(DType student, DType teacher) { return l1_functions<F32x8>(student, teacher); }

kd::SortedFunction kd::sorted_function_avx2(DType student, DType teacher) {
  return sorted_function<F32x8>(student, teacher);
}
