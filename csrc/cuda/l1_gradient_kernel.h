// The derivative of L1 costs with respect to the rows of one side.
#pragma once

#include "l1_rows.h"
#include "l1_statistics_kernel.h"

namespace kd {

constexpr int kL1GainThreads = 256;

// A block has kL1GainRows rows and kL1GainColumns columns, a thread 8 rows and 4 columns of them. Rows of the other
// side come some at a time, with their weights: a thread fetches 16 bytes of both halves of one, and up to two weights.
template <int kBytes> struct L1GainSteps {
  static constexpr int kOwn = 16 / kBytes;  // columns that a thread fetches of a half
  static constexpr int kHalf = kL1GainColumns / 2;
  static constexpr int kFetchers = kHalf / kOwn;            // threads to a row
  static constexpr int kRows = kL1GainThreads / kFetchers;  // at a time
  static constexpr int kWeighed = kL1GainThreads / kL1GainRows;
  static constexpr int kWeights = kRows / kWeighed;
  static constexpr int kBuffer = kRows * (kL1GainColumns + kL1GainRows);  // numbers
  static constexpr int kSharedBytes = 2 * kBuffer * 4;
  static_assert(kRows % kWeighed == 0);
};

// Where the tile of rows that this block works on begins.
struct L1GainTile {
  int64_t problem, line;  // the first row among the rows of all tiles that are worked on
  int row;                // and in its problem

  KD_DEVICE static L1GainTile at(int64_t tile, int64_t first_tile, int rows) {
    const int tiles = (rows + kL1GainRows - 1) / kL1GainRows;
    return {(tile + first_tile) / tiles, tile * kL1GainRows,
            static_cast<int>((tile + first_tile) % tiles) * kL1GainRows};
  }
};

// G_iv = sum_j W_ij sign(q_iv - p_jv). In front of a softmax a constant of the row changes nothing: there it is taken
// for twice the sum where q > p, so that the derivative is exactly 0 for a row that is its partner's copy; and
// logarithms are compared, log q = (z - max) / T - log sum, which are a multiplication and an addition away from the
// logits. Without softmax sign(0) = 0 and G is the gradient itself.
template <int kBytes, bool kSoftmax> __global__ void __launch_bounds__(kL1GainThreads, 2)
    l1_gain_kernel(const __grid_constant__ L1Problems of, const __grid_constant__ L1Backward backward) {
  using Steps = L1GainSteps<kBytes>;
  constexpr int kThreadsAcross = kL1GainColumns / 4, kOwn = Steps::kOwn;
  float* shared = dynamic_shared<float>();
  const int n = of.student.rows, m = of.teacher.rows;
  const int span = kSoftmax ? of.columns : backward.width;
  const int blocks = (span + kL1GainColumns - 1) / kL1GainColumns;
  const int block = static_cast<int>(blockIdx.x % blocks);
  const L1GainTile tile = L1GainTile::at(blockIdx.x / blocks, backward.first_tile, n);
  const int64_t problem = tile.problem;
  const int columns = of.columns, first_column = block * kL1GainColumns;
  const bool half = of.dtype == DType::kFloat16;
  const int thread = static_cast<int>(threadIdx.x);

  // log2 q, or the entries themselves, of this thread's rows and columns.
  const int down = thread / kThreadsAcross * 8, across = thread % kThreadsAcross * 4;
  const int column = first_column + across;
  float q[8][4], gain[8][4];
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const auto row = L1Row<kBytes>::at(of, true, problem, tile.row + down + i);
    row.template load<4>(column, columns).to_float(half, q[i]);
    const float log_inverse = log2f(row.inverse);
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      if (kSoftmax) q[i][k] = fmaf(q[i][k] - row.top, row.rate, log_inverse);
      gain[i][k] = 0.0f;
    }
  }

  // What it fetches of the other side.
  const int own_row = thread / Steps::kFetchers, own_column = thread % Steps::kFetchers * kOwn;
  const int weight_row = thread / kL1GainRows, weight_line = thread % kL1GainRows;
  const bool weighed = row_counts(of.student, problem, tile.row + weight_line);
  const float* const upstream = backward.upstream + problem * backward.upstream_strides[0] +
                                (tile.row + weight_line) * backward.upstream_strides[1];
  L1Row<kBytes> other;
  Entries<kBytes, kOwn> p[2];
  float weights[Steps::kWeights];
  const auto fetch = [&](int first) {
    other = L1Row<kBytes>::at(of, false, problem, first + own_row);
#pragma unroll
    for (int k = 0; k < 2; ++k) p[k] = other.template load<kOwn>(first_column + own_column + k * Steps::kHalf, columns);
#pragma unroll
    for (int k = 0; k < Steps::kWeights; ++k) {
      const int j = first + weight_row + k * Steps::kWeighed;
      const bool counts = weighed && row_counts(of.teacher, problem, j);
      weights[k] = counts ? upstream[j * backward.upstream_strides[2]] : 0.0f;
    }
  };

  fetch(0);
  for (int first = 0, buffer = 0; first < m; first += Steps::kRows, buffer ^= 1) {
    float* const others = shared + buffer * Steps::kBuffer;        // [kRows][kL1GainColumns]
    float* const scales = others + Steps::kRows * kL1GainColumns;  // [kRows][kL1GainRows]
    const float log_inverse = log2f(other.inverse);
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      float x[kOwn];
      p[k].to_float(half, x);
      float* const place = others + own_row * kL1GainColumns + own_column + k * Steps::kHalf;
#pragma unroll
      for (int i = 0; i < kOwn; ++i)
        if (kSoftmax) x[i] = fmaf(x[i] - other.top, other.rate, log_inverse);
#pragma unroll
      for (int i = 0; i < kOwn; i += 4)
        *reinterpret_cast<float4*>(place + i) = make_float4(x[i], x[i + 1], x[i + 2], x[i + 3]);
    }
#pragma unroll
    for (int k = 0; k < Steps::kWeights; ++k)
      scales[(weight_row + k * Steps::kWeighed) * kL1GainRows + weight_line] = weights[k];
    // With two buffers one barrier does: a buffer is filled again after the next step's, which all reach having read
    // it.
    __syncthreads();
    fetch(first + Steps::kRows);
#pragma unroll(kSoftmax ? 2 : 1)
    for (int j = 0; j < Steps::kRows; ++j) {
      const float4 y = *reinterpret_cast<const float4*>(others + j * kL1GainColumns + across);
      const float4 low = *reinterpret_cast<const float4*>(scales + j * kL1GainRows + down);
      const float4 high = *reinterpret_cast<const float4*>(scales + j * kL1GainRows + down + 4);
      const float b[4] = {y.x, y.y, y.z, y.w};
      const float w[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
      for (int i = 0; i < 8; ++i) {
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          if (q[i][k] > b[k]) gain[i][k] += w[i];
          if (!kSoftmax && q[i][k] < b[k]) gain[i][k] -= w[i];
        }
      }
    }
  }

  if constexpr (!kSoftmax) {  // beyond the last column all entries are equal
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const int row = tile.row + down + i;
      if (row >= n || column >= span) continue;
      char* const out = static_cast<char*>(backward.gradient) + kBytes * ((problem * n + row) * span + column);
      Entries<kBytes, 4>::of_float(half, gain[i]).store(out, span - column);
    }
    return;
  }

  float* const gains = backward.gains + (tile.line + down) * span + column;
#pragma unroll
  for (int i = 0; i < 8; ++i) {
#pragma unroll
    for (int k = 0; k < 4; ++k)
      if (column + k < columns) gains[i * int64_t(span) + k] = 2.0f * gain[i][k];
  }
  // sum q G of every row over the block's columns: over lanes, then over the two warps of the row. G is read again,
  // which leaves its registers to the loop.
  __syncthreads();
  float* const sums = shared;  // [8 warps][8]
#pragma unroll 1
  for (int i = 0; i < 8; ++i) {
    const auto row = L1Row<kBytes>::at(of, true, problem, tile.row + down + i);
    float x[4], sum = 0.0f;
    row.template load<4>(column, columns).to_float(half, x);
#pragma unroll
    for (int k = 0; k < 4; ++k)
      if (column + k < columns) sum = fmaf(row.probability(x[k]), gains[i * int64_t(span) + k], sum);
#pragma unroll
    for (int lanes = 16; lanes > 0; lanes /= 2) sum += __shfl_xor_sync(kAllLanes, sum, lanes);
    if (thread % 32 == 0) sums[thread / 32 * 8 + i] = sum;
  }
  __syncthreads();
  if (thread >= kL1GainRows) return;
  const int pair = thread / 8 * 16 + thread % 8;
  backward.sums[(tile.line + thread) * blocks + block] = sums[pair] + sums[pair + 8];
}

constexpr int kL1GradientColumns = 8 * kL1RowThreads;

// q (G - sum q G) / T of a part of a row.
template <int kBytes> __global__ void __launch_bounds__(kL1RowThreads)
    l1_gradient_kernel(const __grid_constant__ L1Problems of, const __grid_constant__ L1Backward backward) {
  using Eight = Entries<kBytes, 8>;
  float* shared = dynamic_shared<float>();
  const int n = of.student.rows, width = backward.width, columns = of.columns;
  const int parts = (width + kL1GradientColumns - 1) / kL1GradientColumns;
  const int64_t line = blockIdx.x / parts;
  const L1GainTile tile = L1GainTile::at(line / kL1GainRows, backward.first_tile, n);
  const int row = tile.row + static_cast<int>(line % kL1GainRows);
  if (row >= n) return;
  const bool half = of.dtype == DType::kFloat16;
  const auto student = L1Row<kBytes>::at(of, true, tile.problem, row);
  const int blocks = (columns + kL1GainColumns - 1) / kL1GainColumns;
  float mean = 0.0f;
  for (int k = static_cast<int>(threadIdx.x); k < blocks; k += kL1RowThreads) mean += backward.sums[line * blocks + k];
  mean = over_block(mean, shared, Add());
  const int column = static_cast<int>(blockIdx.x % parts) * kL1GradientColumns + static_cast<int>(threadIdx.x) * 8;
  if (column >= width) return;
  float x[8];
  student.template load<8>(column, columns).to_float(half, x);
#pragma unroll
  for (int k = 0; k < 8; ++k) {
    float derivative = 0.0f;
    if (column + k < columns) {
      const float gain = backward.gains[line * columns + column + k];
      derivative = student.probability(x[k]) * (gain - mean) * backward.inverse_temperature;
    }
    x[k] = derivative;
  }
  char* const out = static_cast<char*>(backward.gradient) + kBytes * ((tile.problem * n + row) * width + column);
  Eight::of_float(half, x).store(out, width - column);
}

}  // namespace kd
