// The blocks that work on one row, and how they agree on its sums: always in the same order, so that a row gives the
// same bits in every run.
#pragma once

#include "kd/real.h"
#include "primitives.h"
#include "row_plan.h"

namespace kd {

constexpr int kWarp = 32;
constexpr int kMaxSums = 4;  // at once

struct Addition {
  static constexpr float kNeutral = 0.0f;
  KD_DEVICE float operator()(float a, float b) const { return a + b; }
};

struct Maximum {
  static constexpr float kNeutral = -INFINITY;
  KD_DEVICE float operator()(float a, float b) const { return max(a, b); }
};

struct TeamMemory {
  float of_warp[kMaxRowThreads / kWarp][kMaxSums];
  float of_block[2][kMaxCluster][kMaxSums];
};

struct alignas(16) RowMemory {  // what lies before a block's vectors
  Barrier arrived;
  TeamMemory team;
  KD_DEVICE uint4* vectors() { return reinterpret_cast<uint4*>(this + 1); }
};

template <bool kClustered> class Team {
 public:
  KD_DEVICE explicit Team(TeamMemory* memory) : memory_(memory) {}

  KD_DEVICE unsigned rank() const { return kClustered ? cluster_rank() : 0; }
  KD_DEVICE unsigned size() const { return kClustered ? cluster_size() : 1; }

  KD_DEVICE void sync() const {
    if constexpr (kClustered) {
      cluster_sync();
    } else {
      __syncthreads();
    }
  }

  // v[k] of all threads together, for all threads. Everything they wrote before is seen by all afterwards.
  template <class Operation, int kSums> KD_DEVICE void reduce(float (&v)[kSums]) {
    const Operation operation;
    const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, warps = blockDim.x / kWarp;
    warp_reduce<Operation>(v);
    if (lane == 0) {
#pragma unroll
      for (int k = 0; k < kSums; ++k) memory_->of_warp[warp][k] = v[k];
    }
    __syncthreads();
    if (warp == 0) {
#pragma unroll
      for (int k = 0; k < kSums; ++k) v[k] = lane < warps ? memory_->of_warp[lane][k] : Operation::kNeutral;
      warp_reduce<Operation>(v);
      if (lane < static_cast<int>(size())) {
        TeamMemory* of_other = memory_of(lane);
#pragma unroll
        for (int k = 0; k < kSums; ++k) of_other->of_block[turn_][rank()][k] = v[k];
      }
    }
    // The next sums go to the other half: whoever writes there has come by here twice, and so have all who read it.
    sync();
    const float (*of_block)[kMaxSums] = memory_->of_block[turn_];
#pragma unroll
    for (int k = 0; k < kSums; ++k) v[k] = of_block[0][k];
    for (unsigned other = 1; other < size(); ++other) {
#pragma unroll
      for (int k = 0; k < kSums; ++k) v[k] = operation(v[k], of_block[other][k]);
    }
    turn_ ^= 1;
  }

  // Sum of x over the threads before this one, in the order of blocks and of threads in a block.
  KD_DEVICE float count_before(float x) {
    const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, warps = blockDim.x / kWarp;
    float upto = x;
#pragma unroll
    for (int lanes = 1; lanes < kWarp; lanes *= 2) {
      const float before = __shfl_up_sync(0xffffffffu, upto, lanes);
      if (lane >= lanes) upto += before;
    }
    if (lane == kWarp - 1) memory_->of_warp[warp][0] = upto;
    __syncthreads();
    float sum = upto - x, all = 0.0f;
    for (int other = 0; other < warps; ++other) {
      const float of_warp = memory_->of_warp[other][0];
      if (other < warp) sum += of_warp;
      all += of_warp;
    }
    if (threadIdx.x < size()) memory_of(threadIdx.x)->of_block[turn_][rank()][0] = all;
    sync();
    for (unsigned other = 0; other < rank(); ++other) sum += memory_->of_block[turn_][other][0];
    turn_ ^= 1;
    return sum;
  }

 private:
  KD_DEVICE TeamMemory* memory_of(unsigned rank) const {
    if constexpr (kClustered) return of_block(memory_, rank);
    return memory_;
  }

  template <class Operation, int kSums> KD_DEVICE static void warp_reduce(float (&v)[kSums]) {
    const Operation operation;
#pragma unroll
    for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) {
#pragma unroll
      for (int k = 0; k < kSums; ++k) v[k] = operation(v[k], __shfl_xor_sync(0xffffffffu, v[k], lanes));
    }
  }

  TeamMemory* memory_;
  unsigned turn_ = 0;
};

}  // namespace kd
