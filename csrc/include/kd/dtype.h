// Element types of the tensors the backends take.
#pragma once

namespace kd {

enum class DType : int { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 2, kFloat64 = 3 };

}  // namespace kd
