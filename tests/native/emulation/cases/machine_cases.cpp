// Small kernels with one thing that must not be missing, and without it.
//
//     machine_cases CASE right|missing SEEDS
//
// runs a case under that many seeds; the exit status is 1 where a result is wrong.
#include <cstdlib>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "cuda/launch.h"

extern "C" void kd_emulation_seed(uint64_t seed);

namespace {

using namespace kd;

constexpr unsigned kAll = 0xffffffffu;
constexpr int kThreads = 96;

// x is 0, 1, 2, ...; every kernel writes out[i] = 1 for its threads or entries where all is well.
struct Data {
  const float* x;
  float* out;
  int n;
};

KD_DEVICE int me() { return static_cast<int>(threadIdx.x); }
KD_DEVICE int next() { return (me() + 1) % static_cast<int>(blockDim.x); }

template <bool kMissing> __global__ void barrier_behind_writes(Data d) {
  float* s = dynamic_shared<float>();
  s[me()] = d.x[me()];
  if (!kMissing) __syncthreads();
  d.out[me()] = s[next()] == d.x[next()];
}

template <bool kMissing> __global__ void barrier_behind_reads(Data d) {
  float* s = dynamic_shared<float>();
  bool good = true;
  for (int round = 0; round < 3; ++round) {
    s[me()] = d.x[me()] + static_cast<float>(round);
    __syncthreads();
    good = good && s[next()] == d.x[next()] + static_cast<float>(round);
    if (!kMissing) __syncthreads();
  }
  d.out[me()] = good;
}

template <bool kMissing> __global__ void barrier_of_a_warp(Data d) {
  float* s = dynamic_shared<float>();
  s[me()] = d.x[me()];
  if (!kMissing) __syncwarp();
  d.out[me()] = s[me() ^ 1] == d.x[me() ^ 1];
}

template <bool kMissing> __global__ void barrier_of_all(Data d) {
  if (kMissing && me() < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
  d.out[me()] = 1;
}

template <bool kMissing> __global__ void threads_of_a_named_barrier(Data d) {
  float* s = dynamic_shared<float>();
  if (me() < 64) {
    s[me()] = d.x[me()];
    named_barrier_sync(1, kMissing ? 96 : 64);
    d.out[me()] = s[me() ^ 63] == d.x[me() ^ 63];
  } else {
    d.out[me()] = 1;
  }
}

template <bool kMissing> __global__ void mask_of_lanes_that_come(Data d) {
  d.out[me()] = 1;
  if (me() % 32 < 20) d.out[me()] = __shfl_xor_sync(kMissing ? kAll : (1u << 20) - 1, d.x[me()], 1) == d.x[me() ^ 1];
}

template <bool kMissing> __global__ void source_within_the_mask(Data d) {
  d.out[me()] = 1;
  if (me() % 32 < 20) d.out[me()] += 0 * __shfl_xor_sync((1u << 20) - 1, d.x[me()], kMissing ? 16 : 3);
}

template <bool kMissing> __global__ void initial_value(Data d) {
  float* s = dynamic_shared<float>();
  if (!kMissing) s[me()] = 0;
  s[me()] += 1;
  d.out[me()] = s[me()];
}

template <bool kMissing> __global__ void bound_of_shared_memory(Data d) {
  float* s = dynamic_shared<float>();
  s[me()] = 1;
  __syncthreads();
  d.out[me()] = kMissing ? s[me() + 1] : s[next()];
}

template <bool kMissing> __global__ void bound_of_global_memory(Data d) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x) + me();
  if (kMissing || i < d.n) d.out[i] = 1;
}

template <bool kMissing> __global__ void alignment(Data d) {
  const float4 four = *reinterpret_cast<const float4*>(d.x + (kMissing ? 1 : 4));
  d.out[me()] = four.x == (kMissing ? 1 : 4);
}

enum Part { kNothing, kFence, kWait, kBytes, kSync };

// Rounds of bulk loads into one buffer.
template <Part kPart> __global__ void bulk_loads(Data d) {
  float* s = dynamic_shared<float>();
  Barrier* full = reinterpret_cast<Barrier*>(s + 64);
  if (me() == 0) {
    barrier_init(full, 1);
    if (kPart != kFence) barrier_init_fence();
  }
  __syncthreads();
  bool good = true;
  for (unsigned round = 0; round < 3; ++round) {
    if (me() == 0) {
      barrier_expect(full, kPart == kBytes ? 272 : 256);
      bulk_load(s, d.x + 4 * round, 256, full);
    }
    if (kPart != kWait) barrier_wait(full, round % 2);
    if (me() < 64) good = good && s[me()] == d.x[4 * round + me()];
    if (kPart != kSync) __syncthreads();
  }
  d.out[me()] = good;
}

// Rounds of bulk stores from one buffer.
template <Part kPart> __global__ void bulk_stores(Data d) {
  float* s = dynamic_shared<float>();
  for (int round = 0; round < 2; ++round) {
    s[me()] = static_cast<float>(round);
    if (kPart != kFence) async_fence_shared();
    if (kPart != kSync) __syncthreads();
    if (me() == 0) {
      bulk_store(round == 0 ? d.out + kThreads : d.out, s, kThreads * 4);
      bulk_store_commit();
      if (kPart != kWait) bulk_store_wait_read<0>();
    }
    __syncthreads();
  }
  if (me() == 0) bulk_store_wait<0>();
  __syncthreads();
  d.out[kThreads + me()] += 1;  // of round 0
}

// Two buffers: one is read while the other is filled.
template <Part kPart> __global__ void copies(Data d) {
  float* s = dynamic_shared<float>() + 4 * me();
  copy16_async(s, d.x + 4 * me());
  copy_commit();
  bool good = true;
  for (int round = 0; round < 3; ++round) {
    if (round < 2) copy16_async(s + (round + 1) % 2 * 4 * kThreads, d.x + 4 * (me() + round + 1));
    copy_commit();
    if (kPart != kWait) copy_wait<1>();
    good = good && s[round % 2 * 4 * kThreads] == d.x[4 * (me() + round)];
  }
  d.out[me()] = good;
}

// Every block of the cluster reads what the next one wrote, after that one is ready and while it is there.
template <Part kPart> __global__ void reads_from_the_cluster(Data d) {
  float* s = dynamic_shared<float>();
  s[me()] = d.x[me()] + static_cast<float>(cluster_rank());
  const unsigned peer = (cluster_rank() + 1) % cluster_size();
  if (kPart != kSync) cluster_sync();
  d.out[blockIdx.x * kThreads + me()] = of_block(s, peer)[next()] == d.x[next()] + static_cast<float>(peer);
  if (kPart != kWait) cluster_sync();
}

// Every block writes into the next one, which has to be there.
template <bool kMissing> __global__ void writes_into_the_cluster(Data d) {
  float* s = dynamic_shared<float>();
  const unsigned peer = (cluster_rank() + 1) % cluster_size(), before = cluster_size() - 1 + cluster_rank();
  if (!kMissing) cluster_sync();
  of_block(s, peer)[me()] = static_cast<float>(cluster_rank());
  cluster_sync();
  d.out[blockIdx.x * kThreads + me()] = s[next()] == static_cast<float>(before % cluster_size());
}

struct Case {
  void (*right)(Data);
  void (*missing)(Data);
  size_t shared_bytes = kThreads * 4;
  unsigned blocks = 1, cluster = 1;
  int entries = kThreads;
};

#define PAIR(kernel) kernel<false>, kernel<true>
const std::map<std::string, Case> kCases = {
    {"barrier_behind_writes", {PAIR(barrier_behind_writes)}},
    {"barrier_behind_reads", {PAIR(barrier_behind_reads)}},
    {"barrier_of_a_warp", {PAIR(barrier_of_a_warp)}},
    {"barrier_of_all", {PAIR(barrier_of_all)}},
    {"threads_of_a_named_barrier", {PAIR(threads_of_a_named_barrier)}},
    {"mask_of_lanes_that_come", {PAIR(mask_of_lanes_that_come)}},
    {"source_within_the_mask", {PAIR(source_within_the_mask)}},
    {"initial_value", {PAIR(initial_value)}},
    {"bound_of_shared_memory", {PAIR(bound_of_shared_memory)}},
    {"bound_of_global_memory", {PAIR(bound_of_global_memory), 0, 2, 1, kThreads + 5}},
    {"alignment", {PAIR(alignment)}},
    {"fence_of_a_new_barrier", {bulk_loads<kNothing>, bulk_loads<kFence>}},
    {"wait_for_a_bulk_load", {bulk_loads<kNothing>, bulk_loads<kWait>}},
    {"bytes_of_a_bulk_load", {bulk_loads<kNothing>, bulk_loads<kBytes>}},
    {"barrier_before_a_bulk_load", {bulk_loads<kNothing>, bulk_loads<kSync>}},
    {"fence_of_a_bulk_store", {bulk_stores<kNothing>, bulk_stores<kFence>, kThreads * 4, 1, 1, 2 * kThreads}},
    {"wait_for_a_bulk_store", {bulk_stores<kNothing>, bulk_stores<kWait>, kThreads * 4, 1, 1, 2 * kThreads}},
    {"barrier_before_a_bulk_store", {bulk_stores<kNothing>, bulk_stores<kSync>, kThreads * 4, 1, 1, 2 * kThreads}},
    {"wait_for_a_copy", {copies<kNothing>, copies<kWait>, kThreads * 32}},
    {"barrier_before_the_cluster_reads",
     {reads_from_the_cluster<kNothing>, reads_from_the_cluster<kSync>, kThreads * 4, 4, 2, 4 * kThreads}},
    {"barrier_before_a_block_ends",
     {reads_from_the_cluster<kNothing>, reads_from_the_cluster<kWait>, kThreads * 4, 4, 2, 4 * kThreads}},
    {"barrier_before_the_cluster_writes", {PAIR(writes_into_the_cluster), kThreads * 4, 4, 4, 4 * kThreads}},
};

bool run(const Case& of, bool missing, uint64_t seed) {
  void* memory = nullptr;
  if (posix_memalign(&memory, 16, kThreads * 32) != 0) std::abort();
  float* x = static_cast<float*>(memory);
  for (int i = 0; i < kThreads * 8; ++i) x[i] = static_cast<float>(i);
  if (posix_memalign(&memory, 16, static_cast<size_t>(of.entries) * 4) != 0) std::abort();
  float* out = static_cast<float*>(memory);
  for (int i = 0; i < of.entries; ++i) out[i] = 0;
  kd_emulation_seed(seed);
  launch(missing ? of.missing : of.right, of.blocks, kThreads, of.shared_bytes, of.cluster, nullptr,
         Data{x, out, of.entries});
  bool good = true;
  for (int i = 0; i < of.entries; ++i) good = good && out[i] == 1;
  std::free(x);
  std::free(out);
  return good;
}

}  // namespace

int main(int, char** arguments) {
  const Case& of = kCases.at(arguments[1]);
  for (uint64_t seed = 0; seed < std::stoull(arguments[3]); ++seed)
    if (!run(of, arguments[2] == std::string("missing"), seed)) return 1;
}
