#include "row_kernel.h"

namespace kd {

template RowKernels row_kernels<KlRows<true, false>>(int);
template RowKernels row_kernels<KlRows<false, true>>(int);
template RowKernels row_kernels<KlRows<true, true>>(int);

}  // namespace kd
