// x *= factor on a GPU.
#pragma once

#include <cstdint>

#include "kd/dtype.h"

namespace kd {

// x[n], contiguous; the factor is read on the device. A factor of 1 leaves x unread.
void scale(void* x, int64_t n, DType dtype, const float* factor, void* stream);

}  // namespace kd
