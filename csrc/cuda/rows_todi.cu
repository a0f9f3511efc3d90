#include "row_kernel.h"

namespace kd {

template RowKernels row_kernels<TodiRows<true>>(int);
template RowKernels row_kernels<TodiRows<false>>(int);

}  // namespace kd
