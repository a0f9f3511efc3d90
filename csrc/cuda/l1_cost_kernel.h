// Costs of a tile of pairs of rows over a range of columns.
#pragma once

#include "l1_rows.h"

namespace kd {

// A thread has the sums of kPairs * kPairs pairs: squares of 4 by 4, spread so that neighbours read neighbouring rows
// of a column.
template <int kTile> struct L1Tiling {
  static constexpr int kPairs = kTile == 128 ? 8 : 4;
  static constexpr int kSquare = kTile * 4 / kPairs;  // from one of its squares to the next
  static constexpr int kAlong = kTile / kPairs;       // threads along a side
  static constexpr int kThreads = kAlong * kAlong;

  // The row of the i-th of its pairs, in order; likewise the column.
  KD_DEVICE static int row_of(int thread, int pair) { return side_of(thread / kAlong, pair / kPairs); }
  KD_DEVICE static int column_of(int thread, int pair) { return side_of(thread % kAlong, pair % kPairs); }

 private:
  KD_DEVICE static int side_of(int along, int i) { return i / 4 * kSquare + along * 4 + i % 4; }
};

// The tile that comes `index`-th of all ranges, problems, rows and columns of tiles.
struct L1Place {
  int64_t range, problem;
  int row, column;

  KD_DEVICE static L1Place at(const L1Problems& of, int tile, int64_t index) {
    const int row_tiles = (of.student.rows + tile - 1) / tile, column_tiles = (of.teacher.rows + tile - 1) / tile;
    const int64_t line = index / column_tiles, problem = line / row_tiles;
    return {problem / of.problems, problem % of.problems, static_cast<int>(line % row_tiles) * tile,
            static_cast<int>(index % column_tiles) * tile};
  }
};

// Columns whose sum is a chain of additions. Such sums are added up in memory, sums[range][problem][tiles of
// rows][tiles of columns][pairs of a thread][threads]: in registers they would take as many again, and half the warps
// their place.
constexpr int kL1Chain = 512;

// How the columns come: a thread makes 16 bytes' probabilities of one row of either side.
template <int kBytes, int kTile> struct L1Steps {
  static constexpr int kOwn = 16 / kBytes;
  static constexpr int kColumns = 2 * kOwn;  // at a time
  static constexpr int kPitch = kTile + 4;   // of a column in shared memory
  static constexpr int kSide = kColumns * kPitch;
  static constexpr int kBuffers = 2 * 2 * kSide;  // two of both sides
  static constexpr int kSharedBytes = (kBuffers + 2) * 4;
  static_assert(L1Tiling<kTile>::kThreads == 2 * kTile && kL1Chain % kColumns == 0);
};

// Probabilities of a row, each into its column; those beyond the range are 0.
template <int kPitch, int kBytes, int kCount>
KD_DEVICE void put_probabilities(const L1Row<kBytes>& row, const Entries<kBytes, kCount>& entries, int count, bool half,
                                 bool softmax, float* place) {
  float x[kCount];
  entries.to_float(half, x);
#pragma unroll
  for (int k = 0; k < kCount; ++k) {
    const float q = softmax ? row.probability(x[k]) : x[k];
    place[k * kPitch] = k < count ? q : 0.0f;
  }
}

template <int kBytes, int kTile> __global__ void __launch_bounds__(L1Tiling<kTile>::kThreads, kTile == 128 ? 2 : 8)
    l1_cost_kernel(const __grid_constant__ L1Problems of, int width, float* sums) {
  using Tiling = L1Tiling<kTile>;
  using Steps = L1Steps<kBytes, kTile>;
  constexpr int kPairs = Tiling::kPairs, kOwn = Steps::kOwn, kPitch = Steps::kPitch, kSide = Steps::kSide;
  float* shared = dynamic_shared<float>();  // [2 buffers][2 sides][columns][kPitch]
  const L1Place place = L1Place::at(of, kTile, blockIdx.x);
  const int begin = static_cast<int>(place.range) * width;
  const bool half = of.dtype == DType::kFloat16;

  // What this thread makes probabilities of.
  const int own = static_cast<int>(threadIdx.x) / 2, skip = static_cast<int>(threadIdx.x) % 2 * kOwn;
  const auto q_row = L1Row<kBytes>::at(of, true, place.problem, place.row + own).from(begin + skip);
  const auto p_row = L1Row<kBytes>::at(of, false, place.problem, place.column + own).from(begin + skip);
  // Where none counts on a side nobody will look at the sums.
  int* const some = reinterpret_cast<int*>(shared + Steps::kBuffers);
  if (threadIdx.x < 2) some[threadIdx.x] = 0;
  __syncthreads();
  if (q_row.entries) some[0] = 1;
  if (p_row.entries) some[1] = 1;
  __syncthreads();
  if (some[0] == 0 || some[1] == 0) return;
  const int length = of.columns - begin < width ? of.columns - begin : width;

  const int thread = static_cast<int>(threadIdx.x);
  const int row = Tiling::row_of(thread, 0), column = Tiling::column_of(thread, 0);
  float chain[kPairs][kPairs];
#pragma unroll
  for (int i = 0; i < kPairs; ++i)
#pragma unroll
    for (int j = 0; j < kPairs; ++j) chain[i][j] = 0.0f;

  float* const own_place = shared + skip * kPitch + own;
  const int own_length = length - skip;
  auto q = q_row.template load<kOwn>(0, own_length);
  auto p = p_row.template load<kOwn>(0, own_length);
  for (int v = 0, buffer = 0; v < length; v += Steps::kColumns, buffer ^= 1) {
    put_probabilities<kPitch>(q_row, q, own_length - v, half, of.softmax, own_place + 2 * kSide * buffer);
    put_probabilities<kPitch>(p_row, p, own_length - v, half, of.softmax, own_place + 2 * kSide * buffer + kSide);
    // With two buffers one barrier does: a buffer is filled again after the next step's, which all reach having read
    // it.
    __syncthreads();
    q = q_row.template load<kOwn>(v + Steps::kColumns, own_length);
    p = p_row.template load<kOwn>(v + Steps::kColumns, own_length);
    const float* const q_columns = shared + 2 * kSide * buffer + row;
    const float* const p_columns = shared + 2 * kSide * buffer + kSide + column;
#pragma unroll(kTile == 128 ? 1 : 2)  // a thread of a large tile has no registers for more
    for (int k = 0; k < Steps::kColumns; ++k) {
      float a[kPairs], b[kPairs];
#pragma unroll
      for (int i = 0; i < kPairs; i += 4) {
        const float4 x = *reinterpret_cast<const float4*>(q_columns + k * kPitch + i / 4 * Tiling::kSquare);
        const float4 y = *reinterpret_cast<const float4*>(p_columns + k * kPitch + i / 4 * Tiling::kSquare);
        a[i] = x.x, a[i + 1] = x.y, a[i + 2] = x.z, a[i + 3] = x.w;
        b[i] = y.x, b[i + 1] = y.y, b[i + 2] = y.z, b[i + 3] = y.w;
      }
#pragma unroll
      for (int i = 0; i < kPairs; ++i)
#pragma unroll
        for (int j = 0; j < kPairs; ++j) chain[i][j] += fabsf(a[i] - b[j]);
    }
    if (v % kL1Chain != kL1Chain - Steps::kColumns && v + Steps::kColumns < length) continue;
    float* const out = sums + int64_t(blockIdx.x) * kTile * kTile + threadIdx.x;
    const bool first = v < kL1Chain;
#pragma unroll
    for (int k = 0; k < kPairs * kPairs; ++k) {
      float& of_chain = chain[k / kPairs][k % kPairs];
      float& of_range = out[k * Tiling::kThreads];
      of_range = first ? of_chain : of_range + of_chain;
      of_chain = 0.0f;
    }
  }
}

// The costs, from the sums of all ranges, 32 at a time in the order in which they lie there.
constexpr int kL1SumThreads = 256;

template <int kTile> __global__ void __launch_bounds__(kL1SumThreads)
    l1_sum_kernel(const __grid_constant__ L1Problems of, int ranges, const float* sums, float* cost) {
  constexpr int kWarps = kL1SumThreads / 32, kSums = kTile * kTile;
  float* shared = dynamic_shared<float>();  // [kWarps][32]
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int64_t index = int64_t(blockIdx.x) * 32 + threadIdx.x % 32, all = int64_t(gridDim.x) * 32;
  const L1Place place = L1Place::at(of, kTile, index / kSums);
  const int thread = static_cast<int>(index % kSums) % L1Tiling<kTile>::kThreads;
  const int pair = static_cast<int>(index % kSums) / L1Tiling<kTile>::kThreads;
  const int row = place.row + L1Tiling<kTile>::row_of(thread, pair);
  const int column = place.column + L1Tiling<kTile>::column_of(thread, pair);
  const bool counts = row_counts(of.student, place.problem, row) && row_counts(of.teacher, place.problem, column);
  float sum = 0.0f;
  if (counts) {
#pragma unroll 4
    for (int range = warp; range < ranges; range += kWarps) sum += sums[range * all + index];
  }
  shared[threadIdx.x] = sum;
  __syncthreads();
  if (warp != 0 || row >= of.student.rows || column >= of.teacher.rows) return;
#pragma unroll
  for (int other = 1; other < kWarps; ++other) sum += shared[other * 32 + threadIdx.x];
  cost[(place.problem * of.student.rows + row) * of.teacher.rows + column] = sum;
}

}  // namespace kd
