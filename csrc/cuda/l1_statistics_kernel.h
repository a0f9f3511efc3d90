// Maximum and sum of exponentials of rows.
#pragma once

#include "l1_rows.h"

namespace kd {

constexpr int kL1RowThreads = 256;

// Of all threads, in a fixed order; shared[] has room for a number of each warp.
template <class Operation> KD_DEVICE float over_block(float x, float* shared, Operation operation) {
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes /= 2) x = operation(x, __shfl_xor_sync(kAllLanes, x, lanes));
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = x;
  __syncthreads();
  x = shared[0];
  for (unsigned warp = 1; warp < blockDim.x / 32; ++warp) x = operation(x, shared[warp]);
  __syncthreads();
  return x;
}

struct Add {
  KD_DEVICE float operator()(float a, float b) const { return a + b; }
};

struct Larger {  // of a number and NaN the number
  KD_DEVICE float operator()(float a, float b) const { return fmaxf(a, b); }
};

// One row a block, read once: every thread keeps the largest logit it has met, and its sum relative to that.
template <int kBytes> __global__ void __launch_bounds__(kL1RowThreads)
    l1_statistics_kernel(const __grid_constant__ L1Problems of) {
  constexpr int kCount = 8;
  float* shared = dynamic_shared<float>();
  const int rows = of.student.rows, all_rows = rows + of.teacher.rows;
  const int64_t problem = blockIdx.x / all_rows;
  const int line = static_cast<int>(blockIdx.x % all_rows);
  const bool student = line < rows, half = of.dtype == DType::kFloat16;
  const L1Side& side = student ? of.student : of.teacher;
  const int row = student ? line : line - rows;
  float top = -INFINITY, sum = 0.0f;
  const bool counts = row_counts(side, problem, row);
  if (counts) {
    const char* entries =
        static_cast<const char*>(side.entries) + kBytes * (problem * side.problem_stride + row * side.row_stride);
    for (int v = threadIdx.x * kCount; v < of.columns; v += kL1RowThreads * kCount) {
      const int count = of.columns - v;
      float x[kCount];
      Entries<kBytes, kCount>::load(entries + int64_t(kBytes) * v, count).to_float(half, x);
      float larger = top;
#pragma unroll
      for (int k = 0; k < kCount; ++k) larger = k < count ? fmaxf(larger, x[k]) : larger;
      if (larger > top) {
        sum *= exp2_fast((top - larger) * side.rate);  // at first 0 times 0
        top = larger;
      }
      const float shift = top == -INFINITY ? 0.0f : top;
#pragma unroll
      for (int k = 0; k < kCount; ++k) sum += k < count ? exp2_fast((x[k] - shift) * side.rate) : 0.0f;
    }
  }
  const float row_top = over_block(top, shared, Larger());
  const float scale = exp2_fast((top - row_top) * side.rate);
  const float row_sum = over_block(sum * scale, shared, Add());
  if (threadIdx.x == 0) {
    float* out = of.statistics + 2 * int64_t(blockIdx.x);
    out[0] = counts ? row_top : 0.0f;
    out[1] = counts ? 1.0f / row_sum : 0.0f;
  }
}

}  // namespace kd
