// A problem of at most kSize rows and columns in the registers of its threads.
//
// A line is a row or a column; one or two threads hold the entries of row l and those of column l, kEntries each of
// either, so that both products with K are sums of a thread's own and no shuffles but the one that adds two halves.
// Vectors are read from shared memory, four entries at a time and the same for all threads of a warp (or two quadruples
// side by side for two halves).
#pragma once

#include "sinkhorn_problem.h"

namespace kd::cuda {

template <int kSize, int kEntries> struct TileShared {
  static constexpr int kShare = kSize / kEntries;    // threads of a line
  static constexpr int kPitch = kSize + 4 * kShare;  // float4 of eight neighbouring rows lie in different banks
  static constexpr int kWarps = kSize * kShare / 32;

  Problem problem;                         // here, as registers are wanted for K
  alignas(16) float cost[kSize * kPitch];  // +inf where a line has no mass; where that is done with, other matrices
  alignas(16) float x[2][kSize];
  alignas(16) float z[kSize];  // of the backward pass: x' in csrc/cpu/sinkhorn_backward.h
  alignas(16) float y[kSize];
  alignas(16) double row_offset[kSize];
  double column_offset[kSize];
  float a[kSize], b[kSize];
  // Of the backward pass.
  double f[kSize], g[kSize];
  float centre[kSize], rho[kSize], alpha[kSize], a_gradient[kSize], b_gradient[kSize];
  double sums[kWarps];
  int flag;
};

template <int kSize, int kEntries> class Tile {
 public:
  static_assert(kEntries == kSize || kEntries == kSize / 2);
  using Shared = TileShared<kSize, kEntries>;
  static constexpr int kShare = Shared::kShare, kPitch = Shared::kPitch, kWarps = Shared::kWarps;
  static constexpr int kThreads = kSize * kShare;
  static constexpr int kProblems = kSize == 32 ? 4 : 1;  // of a block
  static constexpr int kBlock = kThreads * kProblems;

  KD_DEVICE explicit Tile(Shared* memory)
      : problem(memory->problem),
        shared(memory),
        thread(static_cast<int>(threadIdx.x) % kThreads),
        line(thread / kShare),
        part(thread % kShare) {}

  // The first thing that the threads of a problem do.
  KD_DEVICE void load_masses(const SinkhornProblems& of, int64_t problem_index) {
    const Problem here(of, problem_index);
    if (thread == 0) {
      shared->problem = here;
      shared->flag = 0;
    }
    publish(shared->a, row_mass(of, here, line));
    publish(shared->b, column_mass(of, here, line));
    sync();
  }

  KD_DEVICE void load_costs(const SinkhornProblems& of) const {
    // Neighbouring threads read neighbouring entries, whichever way the matrix lies.
    const bool by_rows = of.column_stride <= of.row_stride;
    with_costs(of, problem, [&](auto costs) {
#pragma unroll 4
      for (int k = thread; k < kSize * kSize; k += kThreads) {
        const int i = by_rows ? k / kSize : k % kSize, j = by_rows ? k % kSize : k / kSize;
        const bool counts = shared->a[i] > 0.0f && shared->b[j] > 0.0f;
        shared->cost[i * kPitch + j] = counts ? costs(i, j) : kInfinity;
      }
    });
    sync();
  }

  // Calls body(i, j, entry) for the entries of a matrix of the problem, neighbouring threads side by side in a row.
  template <class Body> KD_DEVICE void for_matrix(Body body) const {
    const int column = thread % kSize;
    if (column >= problem.columns) return;
#pragma unroll 4
    for (int i = thread / kSize; i < problem.rows; i += kShare) body(i, column, shared->cost[i * kPitch + column]);
  }

  KD_DEVICE void sync() const {
    if constexpr (kWarps == 1) {
      __syncwarp();
    } else {
      __syncthreads();
    }
  }

  // An entry of the thread's line into a vector.
  template <class V> KD_DEVICE void publish(V* vector, V value) const {
    if (part == 0) vector[line] = value;
  }

  // Scalings into the offsets, or out of them again; only the thread that writes reads.
  KD_DEVICE void move_row_offset(float rho, double direction) const {
    if (part == 0) shared->row_offset[line] = moved(shared->row_offset[line], rho, problem.eps, direction);
  }
  KD_DEVICE void move_column_offset(float sigma, double direction) const {
    if (part == 0) shared->column_offset[line] = moved(shared->column_offset[line], sigma, problem.eps, direction);
  }

  KD_DEVICE bool row_in() const { return part == 0 && line < problem.rows; }
  KD_DEVICE bool column_in() const { return part == 0 && line < problem.columns; }

  // Line of the thread's entry e; quadruples of two halves take turns.
  KD_DEVICE int entry(int e) const { return (e / 4 * kShare + part) * 4 + e % 4; }

  // Of an entry's cost, in the thread's row and in its column.
  KD_DEVICE float& cost_in_row(int e) const { return shared->cost[line * kPitch + entry(e)]; }
  KD_DEVICE float& cost_in_column(int e) const { return shared->cost[entry(e) * kPitch + line]; }

  // Masses of the thread's row and column; one read less of registers.
  KD_DEVICE float a() const { return shared->a[line]; }
  KD_DEVICE float b() const { return shared->b[line]; }

  // What both halves of a line have found, together.
  KD_DEVICE float whole(float half) const { return kShare == 1 ? half : half + __shfl_xor_sync(kAllLanes, half, 1); }
  KD_DEVICE double least(double half) const {
    return kShare == 1 ? half : min(half, __shfl_xor_sync(kAllLanes, half, 1));
  }

  // sum_k entries_k vector_k over the line.
  KD_DEVICE float product(const float (&entries)[kEntries], const float* vector) const {
    const float4* quadruples = reinterpret_cast<const float4*>(vector) + part;
    float sum[4] = {};
#pragma unroll
    for (int e = 0; e < kEntries; e += 4) {
      const float4 v = quadruples[e / 4 * kShare];
      sum[0] = fma(entries[e], v.x, sum[0]);
      sum[1] = fma(entries[e + 1], v.y, sum[1]);
      sum[2] = fma(entries[e + 2], v.z, sum[2]);
      sum[3] = fma(entries[e + 3], v.w, sum[3]);
    }
    return whole((sum[0] + sum[1]) + (sum[2] + sum[3]));
  }

  // Between entries: the compiler moves no read across, and so reads no more ahead than there are registers for.
  static KD_DEVICE void pause(int e) {
    if (e % 8 == 0) __syncwarp();
  }

  // K from the offsets and costs; first lets all threads catch up.
  KD_DEVICE void build() {
    const bool rounded = any(part == 0 && (shared->column_offset[line] != 0.0 ||
                                           double(float(shared->row_offset[line])) != shared->row_offset[line]));
    const double f = shared->row_offset[line], h = shared->column_offset[line];
    const double rate = 1.0 / (problem.eps * kLnBase<float>);
    if (!rounded) {
      // The difference from a row's offset is rounded relative to itself, and needs no double.
      const float single_rate = float(rate), minimum = float(f);
#pragma unroll
      for (int e = 0; e < kEntries; ++e) {
        pause(e);
        in_row[e] = exp2_fast((minimum - cost_in_row(e)) * single_rate);
        in_column[e] = exp2_fast((float(shared->row_offset[entry(e)]) - cost_in_column(e)) * single_rate);
      }
    } else {
#pragma unroll
      for (int e = 0; e < kEntries; ++e) {
        pause(e);
        in_row[e] = exp2_fast(float((f + shared->column_offset[entry(e)] - double(cost_in_row(e))) * rate));
        in_column[e] = exp2_fast(float((shared->row_offset[entry(e)] + h - double(cost_in_column(e))) * rate));
      }
    }
  }

  // Raises the flag for any(); `raise` and `raised` have a barrier in between.
  KD_DEVICE void raise(bool mine) const {
    if (__any_sync(kAllLanes, mine) && thread % 32 == 0) shared->flag = 1;
  }
  KD_DEVICE bool raised() const { return shared->flag != 0; }
  // By all threads, which have all seen the flag before it falls, and see it fallen.
  KD_DEVICE void lower() const {
    sync();
    if (thread == 0) shared->flag = 0;
    sync();
  }

  KD_DEVICE bool any(bool mine) const {
    raise(mine);
    sync();
    const bool found = raised();
    lower();
    return found;
  }

  // Over all threads of the problem, in the same order always.
  KD_DEVICE double total(double mine) const {
    double sum = add_lanes(mine);
    if constexpr (kWarps > 1) {
      sync();
      if (thread % 32 == 0) shared->sums[thread / 32] = sum;
      sync();
      sum = 0;
      for (int w = 0; w < kWarps; ++w) sum += shared->sums[w];
    }
    return sum;
  }

  KD_DEVICE double total_of_lines(double mine) const { return total(part == 0 ? mine : 0.0); }

  const Problem& problem;
  Shared* const shared;
  const int thread, line, part;
  float in_row[kEntries], in_column[kEntries];
};

// The problem of a thread, or -1: there is none, or another kernel solves it.
template <int kSize, int kEntries> KD_DEVICE int64_t tile_problem(const SinkhornProblems& of) {
  using T = Tile<kSize, kEntries>;
  const int64_t problem = int64_t(blockIdx.x) * T::kProblems + threadIdx.x / T::kThreads;
  if (problem >= of.problems) return -1;
  if (of.lengths && sinkhorn_tile(of.lengths[2 * problem], of.lengths[2 * problem + 1]) != kSize) return -1;
  return problem;
}

template <int kSize, int kEntries> KD_DEVICE TileShared<kSize, kEntries>* tile_memory() {
  return dynamic_shared<TileShared<kSize, kEntries>>() + threadIdx.x / Tile<kSize, kEntries>::kThreads;
}

}  // namespace kd::cuda
