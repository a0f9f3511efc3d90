// What a block does of a problem that is shared out to the blocks of a cluster.
//
// Rows are cut into kSinkhornParts parts, a block has the same number of them, and holds their rows of K. A sweep over
// K makes products with rows by warps and, while the rows are in the cache, adds them up into the columns' sums of each
// part. Every entry of a vector belongs to one block: rows to that of their part, columns in turns. Vectors are in the
// workspace, where blocks see what others wrote before the last barrier.
#pragma once

#include "sinkhorn_problem.h"

namespace kd::cuda {

class Share {
 public:
  static constexpr int kThreads = 256, kWarps = kThreads / 32;
  static constexpr int kWarpRows = 4, kStrip = kWarps * kWarpRows;  // rows that are in the cache together
  static constexpr int kFlushRows = 8;

  struct Shared {
    alignas(16) float weights[2][kStrip];
    alignas(16) float terms[kSinkhornTerms][kFlushRows];
    double sums[kWarps];
    int found;
  };
  static constexpr size_t kKernelAt = (sizeof(Shared) + 15) / 16 * 16;  // of the shared memory, where K is there
  static_assert(kKernelAt <= kSinkhornShared);

  KD_DEVICE Share(const SinkhornProblems& problems, float* workspace, int terms, bool on_chip)
      : of(problems),
        blocks(static_cast<int>(cluster_size())),
        rank(static_cast<int>(cluster_rank())),
        thread(static_cast<int>(threadIdx.x)),
        warp(thread / 32),
        lane(thread % 32),
        problem(problems, static_cast<int64_t>(blockIdx.x) / blocks),
        shared(dynamic_shared<Shared>()),
        part_rows_((problem.rows + kSinkhornParts - 1) / kSinkhornParts),
        pitch(sinkhorn_pitch(of.columns)) {
    const int parts = kSinkhornParts / blocks;
    first_part_ = rank * parts;
    last_part_ = first_part_ + parts;
    first_row = part_begin(first_part_);
    last_row = part_begin(last_part_);
    float* at = workspace + problem.index * sinkhorn_workspace_of_one(of, terms, on_chip);
    const auto take = [&](int64_t count) {
      float* begin = at;
      at += count;
      return begin;
    };
    const int64_t row_pitch = sinkhorn_pitch(of.rows);
    row_offset = reinterpret_cast<double*>(take(2 * row_pitch));
    column_offset = reinterpret_cast<double*>(take(2 * pitch));
    for (float*& vector : rows) vector = take(row_pitch);
    for (float*& vector : columns) vector = take(pitch);
    row_terms = take(terms * row_pitch);
    column_terms = take(terms * pitch);
    partial_ = take(kSinkhornParts * pitch);
    flags_ = reinterpret_cast<int*>(take(4 * kSinkhornParts));
    // Of K the rows of this block alone are addressed.
    kernel_ = on_chip ? reinterpret_cast<float*>(dynamic_shared<char>() + kKernelAt) - first_row * pitch : at;
    if (thread == 0) shared->found = 0;
  }

  // All blocks see what was written before.
  KD_DEVICE void barrier() const {
    if (blocks == 1) {
      __syncthreads();
    } else {
      cluster_sync();
    }
  }

  template <class Body> KD_DEVICE void for_rows(Body body) const {
    for (int i = first_row + thread; i < last_row; i += kThreads) body(i);
  }

  template <class Body> KD_DEVICE void for_columns(Body body) const {
    for (int j = rank * kThreads + thread; j < problem.columns; j += blocks * kThreads) body(j);
  }

  // body(i) by the 32 lanes of a warp together.
  template <class Body> KD_DEVICE void for_rows_by_warps(Body body) const {
    for (int i = first_row + warp; i < last_row; i += kWarps) body(i);
  }

  // Zeros behind a vector of columns, up to a whole float4, as sweeps want them.
  KD_DEVICE void fill_up(float* vector) const {
    const int j = problem.columns + thread;
    if (rank == 0 && j < sinkhorn_pitch(problem.columns)) vector[j] = 0.0f;
  }

  KD_DEVICE float* kernel_row(int i) const { return kernel_ + i * pitch; }

  KD_DEVICE float a(int i) const { return row_mass(of, problem, i); }
  KD_DEVICE float b(int j) const { return column_mass(of, problem, j); }

  // Whether any thread of the cluster says so; a barrier too. Flags change places, so that a block may go on to the
  // next while others still read these.
  KD_DEVICE bool anywhere(bool mine) {
    if (__any_sync(kAllLanes, mine) && lane == 0) shared->found = 1;
    __syncthreads();
    int* flags = flags_ + turn_ * kSinkhornParts;
    if (thread == 0) {
      flags[rank] = shared->found;
      shared->found = 0;
    }
    barrier();
    turn_ = 1 - turn_;
    int any = 0;
    for (int r = 0; r < blocks; ++r) any |= flags[r];
    return any != 0;
  }

  // The sum of value(i) over i < count, by each block for itself, in the same order always.
  template <class Value> KD_DEVICE double sum(int count, Value value) const {
    double mine = 0;
    for (int i = thread; i < count; i += kThreads) mine += value(i);
    mine = add_lanes(mine);
    __syncthreads();
    if (lane == 0) shared->sums[warp] = mine;
    __syncthreads();
    double total = 0;
    for (int w = 0; w < kWarps; ++w) total += shared->sums[w];
    return total;
  }

  // K from the offsets. Rows and columns without mass are not read and have zeros.
  KD_DEVICE void build() const {
    const double rate = 1.0 / (problem.eps * kLnBase<float>);
    const int padded = static_cast<int>(sinkhorn_pitch(problem.columns));
    with_costs(of, problem, [&](auto costs) {
      for_rows_by_warps([&](int i) KD_LAMBDA {
        const bool row_counts = a(i) > 0.0f;
        const double f = row_offset[i];
        float* row = kernel_row(i);
#pragma unroll 4
        for (int j = lane; j < padded; j += 32) {
          const bool counts = row_counts && b(j) > 0.0f;
          row[j] = counts ? exp2_fast(float((f + column_offset[j] - double(costs(i, j))) * rate)) : 0.0f;
        }
      });
    });
    __syncthreads();
  }

  // weight_i = row(i, sum_j K_ij y_j) for the block's rows, and the sums of K_ij weight_i over those of each part,
  // which column_sum adds up after a barrier. y is 0 up to a whole float4.
  template <class Row> KD_DEVICE void sweep(const float* y, Row row) const {
    const int padded = static_cast<int>(sinkhorn_pitch(problem.columns));
    int buffer = 0;
    for (int part = first_part_; part < last_part_; ++part) {
      const int begin = part_begin(part), end = part_begin(part + 1);
      float* partial = partial_ + part * pitch;
      if (begin == end) {
        for (int j = thread; j < problem.columns; j += kThreads) partial[j] = 0.0f;
      }
      for (int strip = begin; strip < end; strip += kStrip) {
        buffer = 1 - buffer;  // of which no thread reads weights any more
        float* weights = shared->weights[buffer];
        const int here = min(end - strip - warp * kWarpRows, kWarpRows);  // rows of the warp, if positive
        if (here > 0) {
          const int first = strip + warp * kWarpRows;
          float dot[kWarpRows] = {};
          for (int j = 4 * lane; j < padded; j += 128) {
            const float4 v = *reinterpret_cast<const float4*>(y + j);
#pragma unroll
            for (int r = 0; r < kWarpRows; ++r) {
              if (r >= here) break;
              const float4 k = *reinterpret_cast<const float4*>(kernel_row(first + r) + j);
              dot[r] = fma(k.w, v.w, fma(k.z, v.z, fma(k.y, v.y, fma(k.x, v.x, dot[r]))));
            }
          }
          float mine = 0.0f;
#pragma unroll
          for (int r = 0; r < kWarpRows; ++r) {
            const float total = add_lanes(dot[r]);
            mine = lane == r ? total : mine;
          }
          if (lane < here) weights[warp * kWarpRows + lane] = row(first + lane, mine);
        }
        __syncthreads();
        const int count = min(end - strip, kStrip);
        for (int j = thread; j < problem.columns; j += kThreads) {
          float total = 0.0f;
#pragma unroll 8
          for (int r = 0; r < count; ++r) total = fma(kernel_row(strip + r)[j], weights[r], total);
          partial[j] = strip == begin ? total : partial[j] + total;
        }
      }
    }
  }

  // Of each part: partial_j = sum of value(i, j) over the rows of it.
  template <class Value> KD_DEVICE void add_up_columns(Value value) const {
    for (int part = first_part_; part < last_part_; ++part) {
      for (int j = thread; j < problem.columns; j += kThreads) {
        float total = 0.0f;
        for (int i = part_begin(part); i < part_begin(part + 1); ++i) total += value(i, j);
        partial_[part * pitch + j] = total;
      }
    }
  }

  KD_DEVICE float column_sum(int j) const {
    float total = 0.0f;
    for (int part = 0; part < kSinkhornParts; ++part) total += partial_[part * pitch + j];
    return total;
  }

  const SinkhornProblems& of;
  const int blocks, rank, thread, warp, lane;
  const Problem problem;
  Shared* const shared;
  int first_row, last_row;  // of this block

 private:
  KD_DEVICE int part_begin(int part) const { return static_cast<int>(min(part * part_rows_, problem.rows)); }
  static KD_DEVICE int min(int a, int b) { return a < b ? a : b; }

  const int part_rows_;

 public:
  const int64_t pitch;
  double *row_offset, *column_offset;
  float *rows[kSinkhornVectors], *columns[kSinkhornVectors];
  float *row_terms, *column_terms;

 private:
  float *partial_, *kernel_;
  int* flags_;
  int first_part_, last_part_;
  int turn_ = 0;
};

// Whether the problem of this cluster is not one of the tiles'; the same for all its blocks.
KD_DEVICE bool is_shared(const SinkhornProblems& of) {
  const int64_t problem = static_cast<int64_t>(blockIdx.x / cluster_size());
  return !of.lengths || sinkhorn_tile(of.lengths[2 * problem], of.lengths[2 * problem + 1]) == 0;
}

}  // namespace kd::cuda
