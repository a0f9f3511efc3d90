#define KD_ISA avx512
#include "row_kernel.h"
#include "simd_avx512.h"
#include "slice_kernel.h"
#include "tail.h"

kd::RowFunction kd::row_function_avx512(DType student, DType teacher) { return row_function<F32x16>(student, teacher); }

kd::SliceFunction kd::slice_function_avx512(DType student, DType teacher) {
  return slice_function<F32x16>(student, teacher);
}

kd::TailFunction kd::tail_function_avx512(DType dtype) { return tail_function<F32x16>(dtype); }
