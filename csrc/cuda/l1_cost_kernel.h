// Costs of a tile of pairs of rows over a range of columns.
#pragma once

#include "l1_rows.h"

namespace kd {

// A thread has kPieces * kPieces squares of 4 by 4 pairs, spread so that neighbours read neighbouring rows of a column.
template <int kTile> struct L1Tiling {
  static constexpr int kPieces = kTile == 128 ? 2 : 1;
  static constexpr int kAlong = kTile / (4 * kPieces);  // threads along a side
  static constexpr int kThreads = kAlong * kAlong;
  static constexpr int kStep = 16;          // columns at a time; a thread makes 8 of one row of either side
  static constexpr int kPitch = kTile + 4;  // of a column in shared memory
  static constexpr int kSide = kStep * kPitch;
  static constexpr int kSharedBytes = 2 * 2 * kSide * static_cast<int>(sizeof(float));
  static_assert(kThreads * 8 == kTile * kStep);
};

// Columns whose sum is a chain of additions. Such sums are added up in memory: in registers they would take as many
// again, and half the warps their place.
constexpr int kL1Chain = 512;

// Eight probabilities of a row, each into its column; those from `columns` on, and of a row that does not count, are 0.
template <int kBytes, int kPitch> KD_DEVICE void put_probabilities(const L1Row<kBytes>& row,
                                                                   const Entries<kBytes, 8>& entries, int count,
                                                                   bool half, bool softmax, float* place) {
  float x[8];
  entries.to_float(half, x);
#pragma unroll
  for (int k = 0; k < 8; ++k) {
    const float q = softmax ? row.probability(x[k]) : x[k];
    place[k * kPitch] = row.entries && k < count ? q : 0.0f;
  }
}

template <int kBytes, int kTile> __global__ void __launch_bounds__(L1Tiling<kTile>::kThreads, kTile == 128 ? 2 : 8)
    l1_cost_kernel(const __grid_constant__ L1Problems of, int width, float* partials) {
  using Tiling = L1Tiling<kTile>;
  constexpr int kPieces = Tiling::kPieces, kPitch = Tiling::kPitch, kSide = Tiling::kSide, kStep = Tiling::kStep;
  float* shared = dynamic_shared<float>();  // [2 buffers][2 sides][kStep][kPitch]
  const int n = of.student.rows, m = of.teacher.rows;
  const int row_tiles = (n + kTile - 1) / kTile, column_tiles = (m + kTile - 1) / kTile;
  int64_t index = blockIdx.x;
  const int first_column = static_cast<int>(index % column_tiles) * kTile;
  index /= column_tiles;
  const int first_row = static_cast<int>(index % row_tiles) * kTile;
  index /= row_tiles;  // of a range and a problem
  const int64_t problem = index % of.problems;
  const int begin = static_cast<int>(index / of.problems) * width;
  const bool half = of.dtype == DType::kFloat16;

  // What this thread makes probabilities of.
  const int own = static_cast<int>(threadIdx.x) / 2, eighth = static_cast<int>(threadIdx.x) % 2 * 8;
  const L1Row<kBytes> q_row = L1Row<kBytes>::at(of, true, problem, first_row + own);
  const L1Row<kBytes> p_row = L1Row<kBytes>::at(of, false, problem, first_column + own);
  // Where no row of a side counts there is nothing to add up.
  int* some = reinterpret_cast<int*>(shared);
  if (threadIdx.x < 2) some[threadIdx.x] = 0;
  __syncthreads();
  if (q_row.entries) some[0] = 1;
  if (p_row.entries) some[1] = 1;
  __syncthreads();
  const bool empty = some[0] == 0 || some[1] == 0;
  __syncthreads();
  const int end = empty ? begin + 1 : of.columns - begin < width ? of.columns : begin + width;

  // Whose sums it keeps.
  const int down = static_cast<int>(threadIdx.x) / Tiling::kAlong * 4;
  const int across = static_cast<int>(threadIdx.x) % Tiling::kAlong * 4;
  constexpr int kPiece = kTile / kPieces;  // from one of its squares to the next
  float sums[4 * kPieces][4 * kPieces];
#pragma unroll
  for (int i = 0; i < 4 * kPieces; ++i)
#pragma unroll
    for (int j = 0; j < 4 * kPieces; ++j) sums[i][j] = 0.0f;

  float* const own_place = shared + eighth * kPitch + own;
  auto q = q_row.template load<8>(begin + eighth, end);
  auto p = p_row.template load<8>(begin + eighth, end);
  for (int v = begin, buffer = 0; v < end; v += kStep, buffer ^= 1) {
    float* const place = own_place + 2 * kSide * buffer;
    put_probabilities<kBytes, kPitch>(q_row, q, end - v - eighth, half, of.softmax, place);
    put_probabilities<kBytes, kPitch>(p_row, p, end - v - eighth, half, of.softmax, place + kSide);
    // With two buffers one barrier does: a buffer is filled again after the next step's, which all reach having read
    // it.
    __syncthreads();
    q = q_row.template load<8>(v + kStep + eighth, end);
    p = p_row.template load<8>(v + kStep + eighth, end);
    const float* q_columns = shared + 2 * kSide * buffer + down;
    const float* p_columns = shared + 2 * kSide * buffer + kSide + across;
#pragma unroll
    for (int k = 0; k < kStep; ++k) {
      float a[4 * kPieces], b[4 * kPieces];
#pragma unroll
      for (int piece = 0; piece < kPieces; ++piece) {
        const float4 x = *reinterpret_cast<const float4*>(q_columns + k * kPitch + piece * kPiece);
        const float4 y = *reinterpret_cast<const float4*>(p_columns + k * kPitch + piece * kPiece);
        a[4 * piece] = x.x, a[4 * piece + 1] = x.y, a[4 * piece + 2] = x.z, a[4 * piece + 3] = x.w;
        b[4 * piece] = y.x, b[4 * piece + 1] = y.y, b[4 * piece + 2] = y.z, b[4 * piece + 3] = y.w;
      }
#pragma unroll
      for (int i = 0; i < 4 * kPieces; ++i)
#pragma unroll
        for (int j = 0; j < 4 * kPieces; ++j) sums[i][j] += fabsf(a[i] - b[j]);
    }
    if ((v - begin) % kL1Chain != kL1Chain - kStep && v + kStep < end) continue;
    const bool first = v - begin < kL1Chain;
#pragma unroll
    for (int i = 0; i < 4 * kPieces; ++i) {
      const int row = first_row + down + i / 4 * kPiece + i % 4;
      const bool row_counts = L1Row<kBytes>::counts(of.student, problem, row);
      float* const out = partials + (index * n + row) * m;
#pragma unroll
      for (int j = 0; j < 4 * kPieces; ++j) {
        const int column = first_column + across + j / 4 * kPiece + j % 4;
        if (row < n && column < m) {
          const float sum =
              row_counts && L1Row<kBytes>::counts(of.teacher, problem, column) && !empty ? sums[i][j] : 0.0f;
          out[column] = first ? sum : out[column] + sum;
        }
        sums[i][j] = 0.0f;
      }
    }
  }
}

// cost[i] = the sum of partials[range][i] over all ranges, 32 of them to a block.
constexpr int kL1SumThreads = 256;

static __global__ void __launch_bounds__(kL1SumThreads)
    l1_sum_kernel(const float* partials, int ranges, int64_t costs, float* cost) {
  constexpr int kWarps = kL1SumThreads / 32;
  float* shared = dynamic_shared<float>();  // [kWarps][32]
  const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int64_t i = int64_t(blockIdx.x) * 32 + lane;
  float sum = 0.0f;
  if (i < costs) {
#pragma unroll 4
    for (int range = static_cast<int>(warp); range < ranges; range += kWarps) sum += partials[range * costs + i];
  }
  shared[threadIdx.x] = sum;
  __syncthreads();
  if (warp != 0 || i >= costs) return;
#pragma unroll
  for (int other = 1; other < kWarps; ++other) sum += shared[other * 32 + lane];
  cost[i] = sum;
}

}  // namespace kd
