#include "row_kernel.h"

namespace kd {

template RowKernels row_kernels<AklRows>(int);
template RowKernels row_kernels<TvdRows>(int);

}  // namespace kd
