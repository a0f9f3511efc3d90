#include "row_kernel.h"

namespace kd {

template RowKernels row_kernels<JsdRows>(int);
template RowKernels row_kernels<MixtureRows<false>>(int);
template RowKernels row_kernels<MixtureRows<true>>(int);

}  // namespace kd
