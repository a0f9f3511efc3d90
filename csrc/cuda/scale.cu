#include <algorithm>

#include "launch.h"
#include "row_entries.h"
#include "scale.h"

namespace kd {

namespace {

constexpr int kThreads = 256;
constexpr int64_t kMostBlocks = 1 << 14;

template <int kBytes> __global__ void __launch_bounds__(kThreads)
    scale_kernel(void* x, int64_t n, const float* factor, bool half) {
  using Bits = typename Entry<kBytes>::Bits;
  constexpr int kEntries = kVectorBytes / kBytes;
  const float f = *factor;
  if (f == 1.0f) return;
  Bits* entries = static_cast<Bits*>(x);
  const int64_t step = int64_t(gridDim.x) * kThreads, first = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  // Vectors from the first aligned address on, then what is left on either end: less than a vector each.
  const int64_t to_aligned = (kVectorBytes - reinterpret_cast<uintptr_t>(x) % kVectorBytes) % kVectorBytes / kBytes;
  const int64_t head = to_aligned < n ? to_aligned : n;
  const int64_t vectors = (n - head) / kEntries;
#pragma unroll 1
  for (int64_t v = first; v < vectors; v += step) {
    Bits* at = entries + head + v * kEntries;
    float y[kEntries];
    unpack<kBytes>(Words<4>::load(at), half, y);
#pragma unroll
    for (int k = 0; k < kEntries; ++k) y[k] *= f;
    pack<kBytes, 4>(y, half).store(at);
  }
  const int64_t tail = head + vectors * kEntries, left = head + n - tail;
  if (first < left) {
    Bits* at = entries + (first < head ? first : tail + first - head);
    if constexpr (kBytes == 4) {
      *at = __float_as_uint(__uint_as_float(*at) * f);
    } else {
      *at = half ? to_half(from_half(*at) * f) : to_bfloat16(from_bfloat16(*at) * f);
    }
  }
}

}  // namespace

void scale(void* x, int64_t n, DType dtype, const float* factor, void* stream) {
  if (n == 0) return;
  const int bytes = dtype == DType::kFloat32 ? 4 : 2;
  const int64_t vectors = n * bytes / kVectorBytes;
  const unsigned blocks = static_cast<unsigned>(std::min(vectors / kThreads + 1, kMostBlocks));
  launch(bytes == 4 ? scale_kernel<4> : scale_kernel<2>, blocks, kThreads, 0, 1, stream, x, n, factor,
         dtype == DType::kFloat16);
}

}  // namespace kd
