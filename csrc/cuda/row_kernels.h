// The kernels of a family, compiled in a file of their own.
#pragma once

#include "row_arguments.h"

namespace kd {

struct RowKernels {
  void (*on_chip)(RowArguments);
  void (*streamed)(RowArguments);
};

template <class Family> RowKernels row_kernels(int entry_bytes);

}  // namespace kd
