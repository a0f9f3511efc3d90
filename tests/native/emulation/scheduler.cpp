// The emulated machine: who runs next, and who waits for what.
#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "emulation.h"
#include "fiber.h"

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(p, bytes)
#define ASAN_UNPOISON_MEMORY_REGION(p, bytes)
#endif

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace kd::emulation {
namespace {

constexpr unsigned kWarp = 32;
constexpr size_t kMaxSharedBytes = 227 * 1024;
constexpr int kBlockBarriers = 16;

struct Random {  // SplitMix64
  uint64_t state = 0;
  uint64_t next() {
    uint64_t x = state += 0x9e3779b97f4a7c15u;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    return x ^ x >> 31;
  }
  size_t below(size_t n) { return static_cast<size_t>(next() % n); }
};

struct Block;

struct Thread {
  Fiber fiber;
  Block* block;
  unsigned index;
  uint3 coordinates;
  bool over = false;
  const char* waits_for = "";
  Site where{"", 0};
  uint64_t word = 0, result = 0;  // of a collective
  unsigned source = 0;
  bool arrived_in_cluster = false;
  unsigned cluster_phase = 0;
  bool fenced = false;        // since its last group of bulk stores
  int groups[3] = {0, 0, 0};  // that it committed, of each way of copying
};

struct Gathering {  // of the lanes of one collective, filed under the lowest
  Collective what;
  uint32_t mask, arrived = 0;
  Site site;
};

struct Warp {
  Gathering gatherings[kWarp];
};

struct BlockBarrier {
  std::vector<Thread*> waiting;
  int threads = 0;
  Site site;
};

struct Block {
  unsigned rank;
  uint3 index;
  std::vector<std::unique_ptr<Thread>> threads;
  std::vector<Warp> warps;
  std::vector<Thread*> runnable;
  BlockBarrier barriers[kBlockBarriers];
  std::set<uint64_t*> mbarriers;
  std::set<uint64_t*> unpublished;
  std::unique_ptr<char, void (*)(void*)> shared{nullptr, std::free};
  size_t live;
  bool started = false;
  size_t lagging_warp;  // runs when no other can, more often than not
};

// What a Barrier's 64 bits hold. NaN bytes are none.
struct PhaseState {
  uint32_t over : 1, expected : 15, pending : 16;
  int32_t bytes;
};
static_assert(sizeof(PhaseState) == sizeof(uint64_t));

struct Copy {
  Copying how;
  void* to;
  const void* from;
  size_t bytes;
  uint64_t* barrier;
  Thread* owner;
  int group;
};

struct Waiter {
  Thread* thread;
  uint64_t* barrier;
};

struct Cluster {
  std::vector<std::unique_ptr<Block>> blocks;
  std::vector<Copy> copies;
  std::vector<Waiter> waiters;   // for barriers in shared memory
  std::vector<Thread*> waiting;  // for the others of the cluster
  size_t arrived = 0, live = 0;
  unsigned phase = 0;
  Block* running = nullptr;
  size_t patience;  // one in so many steps goes to another block
};

struct Launch {
  dim3 grid, block;
  size_t shared_bytes;
  unsigned cluster;
  void (*body)(const void*);
  const void* arguments;
};

Random generator;
const Launch* launched = nullptr;
Cluster* cluster = nullptr;
Thread* self = nullptr;

bool is_shared(const Block& block, const void* p, size_t bytes = 1) {
  const char* at = static_cast<const char*>(p);
  return at >= block.shared.get() && at + bytes <= block.shared.get() + launched->shared_bytes;
}

PhaseState& phase_of(uint64_t* barrier, const Site& site) {
  check_aligned(barrier, 8, site);
  for (auto& block : cluster->blocks)
    if (block->mbarriers.count(barrier)) return *reinterpret_cast<PhaseState*>(barrier);
  fail(site, "a barrier that was not initialised");
}

void make_runnable(Thread* thread) { thread->block->runnable.push_back(thread); }

void make_runnable(std::vector<Thread*>& threads) {
  for (Thread* thread : threads) make_runnable(thread);
  threads.clear();
}

void pause(const char* waits_for, const Site& site) {
  self->waits_for = waits_for;
  self->where = site;
  self->fiber.leave(false);
}

void run_thread() {
  launched->body(launched->arguments);
  self->over = true;
  self->fiber.leave(true);
}

// A phase that has got all it waited for makes way for the next.
void end_phase(uint64_t* barrier, PhaseState& state) {
  if (state.pending > 0 || state.bytes != 0) return;
  state.over = !state.over;
  state.pending = state.expected;
  auto& waiters = cluster->waiters;
  const auto others = std::partition(waiters.begin(), waiters.end(), [&](Waiter& w) { return w.barrier != barrier; });
  for (auto w = others; w != waiters.end(); ++w) make_runnable(w->thread);
  waiters.erase(others, waiters.end());
}

void carry_out(size_t i) {
  std::swap(cluster->copies[i], cluster->copies.back());
  const Copy copy = cluster->copies.back();
  cluster->copies.pop_back();
  std::memcpy(copy.to, copy.from, copy.bytes);
  if (!copy.barrier) return;
  PhaseState& state = *reinterpret_cast<PhaseState*>(copy.barrier);
  state.bytes -= static_cast<int32_t>(copy.bytes);
  end_phase(copy.barrier, state);
}

void open_if_full(BlockBarrier& barrier, size_t threads) {
  if (barrier.waiting.empty() || barrier.waiting.size() < threads) return;
  make_runnable(barrier.waiting);
}

void open_cluster_if_full() {
  if (cluster->arrived < cluster->live) return;
  cluster->arrived = 0;
  ++cluster->phase;
  make_runnable(cluster->waiting);
}

void start(Block& block) {
  block.started = true;
  ASAN_UNPOISON_MEMORY_REGION(block.shared.get(), launched->shared_bytes);
  std::memset(block.shared.get(), 0xff, launched->shared_bytes);
}

void end(Block& block, const Site& site) {
  for (const Copy& copy : cluster->copies) {
    if (is_shared(block, copy.to) || is_shared(block, copy.from))
      fail(site, "block %u ended during a copy from or to its shared memory", block.rank);
  }
  for (uint64_t* barrier : block.mbarriers) {
    if (reinterpret_cast<PhaseState*>(barrier)->bytes != 0)
      fail(site, "a barrier still expects bytes, or had too many");
  }
  block.mbarriers.clear();
  std::memset(block.shared.get(), 0xff, launched->shared_bytes);
  ASAN_POISON_MEMORY_REGION(block.shared.get(), launched->shared_bytes);
}

void end(Thread& thread) {
  Block& block = *thread.block;
  --block.live;
  --cluster->live;
  if (thread.arrived_in_cluster && thread.cluster_phase == cluster->phase) --cluster->arrived;
  for (const Copy& copy : cluster->copies) {
    if (copy.owner == &thread && copy.how != Copying::kBulkLoad)
      fail(thread.where, "a thread ended before its copies did");
  }
  if (block.live == 0) {
    end(block, thread.where);
  } else {
    open_if_full(block.barriers[0], block.live);
  }
  if (cluster->live > 0) open_cluster_if_full();
}

[[noreturn]] void report_deadlock() {
  std::set<std::string> reasons;
  for (auto& block : cluster->blocks) {
    for (auto& thread : block->threads) {
      if (thread->over) continue;
      reasons.insert(std::string(thread->waits_for) + " at " + thread->where.file + ":" +
                     std::to_string(thread->where.line));
    }
  }
  std::string all;
  for (const std::string& reason : reasons) all += "\n  threads wait for " + reason;
  self = nullptr;
  fail({"", 0}, "deadlock%s", all.c_str());
}

Block* pick_block() {
  if (cluster->running && !cluster->running->runnable.empty() && generator.below(cluster->patience) != 0)
    return cluster->running;
  std::vector<Block*> able;
  for (auto& block : cluster->blocks)
    if (!block->runnable.empty()) able.push_back(block.get());
  return cluster->running = able.empty() ? nullptr : able[generator.below(able.size())];
}

Thread* pick_thread(Block& block) {
  size_t i = 0;
  for (int attempt = 0; attempt < 4; ++attempt) {
    i = generator.below(block.runnable.size());
    if (block.runnable[i]->index / kWarp != block.lagging_warp) break;
  }
  Thread* thread = block.runnable[i];
  block.runnable[i] = block.runnable.back();
  block.runnable.pop_back();
  return thread;
}

void resume(Thread& thread) {
  Block& block = *thread.block;
  if (!block.started) start(block);
  self = &thread;
  threadIdx = thread.coordinates;
  blockIdx = block.index;
  thread.fiber.resume();
  if (thread.over) end(thread);
}

uint3 coordinates_of(size_t i, const dim3& of) {
  return {static_cast<unsigned>(i % of.x), static_cast<unsigned>(i / of.x % of.y),
          static_cast<unsigned>(i / of.x / of.y)};
}

std::unique_ptr<Block> make_block(unsigned rank, size_t index) {
  auto block = std::make_unique<Block>();
  const size_t threads = size_t(launched->block.x) * launched->block.y * launched->block.z;
  block->rank = rank;
  block->index = coordinates_of(index, launched->grid);
  block->warps.resize((threads + kWarp - 1) / kWarp);
  block->lagging_warp = generator.below(block->warps.size());
  block->live = threads;
  void* shared = nullptr;
  if (posix_memalign(&shared, 128, launched->shared_bytes) != 0) fail({"", 0}, "out of memory");
  block->shared.reset(static_cast<char*>(shared));
  std::memset(block->shared.get(), 0xff, launched->shared_bytes);
  ASAN_POISON_MEMORY_REGION(block->shared.get(), launched->shared_bytes);
  for (unsigned i = 0; i < threads; ++i) {
    auto thread = std::make_unique<Thread>();
    thread->block = block.get();
    thread->index = i;
    thread->coordinates = coordinates_of(i, launched->block);
    thread->fiber.start(run_thread);
    block->runnable.push_back(thread.get());
    block->threads.push_back(std::move(thread));
  }
  return block;
}

void run_cluster(size_t index) {
  Cluster current;
  cluster = &current;
  current.patience = size_t(1) << generator.below(12);
  for (unsigned rank = 0; rank < launched->cluster; ++rank) {
    current.blocks.push_back(make_block(rank, index * launched->cluster + rank));
    current.live += current.blocks.back()->live;
  }
  while (current.live > 0) {
    Block* block = pick_block();
    if (!current.copies.empty() && (!block || generator.below(64) == 0)) {
      carry_out(generator.below(current.copies.size()));
    } else if (block) {
      resume(*pick_thread(*block));
    } else {
      report_deadlock();
    }
  }
  cluster = nullptr;
}

}  // namespace

void fail(const Site& site, const char* format, ...) {
  std::fprintf(stderr, "emulation: ");
  va_list values;
  va_start(values, format);
  std::vfprintf(stderr, format, values);
  va_end(values);
  if (site.line > 0) std::fprintf(stderr, "\n  at %s:%d", site.file, site.line);
  if (self) {
    std::fprintf(stderr, "\n  in block (%u, %u, %u), thread (%u, %u, %u)", blockIdx.x, blockIdx.y, blockIdx.z,
                 threadIdx.x, threadIdx.y, threadIdx.z);
  }
  std::fprintf(stderr, "\n");
  std::abort();
}

unsigned lane() { return self->index % kWarp; }

uint64_t collective(Collective what, uint32_t mask, uint64_t word, unsigned source, const Site& site) {
  const unsigned me = lane();
  if (!(mask >> me & 1)) fail(site, "lane %u is not in its own mask %08x", me, mask);
  if (what == Collective::kShuffle && !(mask >> source & 1))
    fail(site, "lane %u is not in the mask %08x", source, mask);
  Block& block = *self->block;
  const unsigned first = self->index / kWarp * kWarp;
  Gathering& gathering = block.warps[self->index / kWarp].gatherings[__builtin_ctz(mask)];
  if (gathering.arrived == 0) {
    gathering = {what, mask, 0, site};
  } else if (gathering.mask != mask || gathering.what != what || !(gathering.site == site)) {
    fail(site, "lanes of a warp meet with masks %08x and %08x, the first at line %d", mask, gathering.mask,
         gathering.site.line);
  }
  gathering.arrived |= 1u << me;
  self->word = word;
  self->source = source;
  if (gathering.arrived != mask) {
    pause("lanes of its warp", site);
    return self->result;
  }
  gathering.arrived = 0;
  uint64_t ballot = 0;
  for (unsigned i = 0; i < kWarp; ++i)
    if (mask >> i & 1) ballot |= uint64_t(block.threads[first + i]->word != 0) << i;
  for (unsigned i = 0; i < kWarp; ++i) {
    if (!(mask >> i & 1)) continue;
    Thread& thread = *block.threads[first + i];
    thread.result = what == Collective::kBallot ? ballot : block.threads[first + thread.source]->word;
    if (i != me) make_runnable(&thread);
  }
  const uint64_t result = self->result;
  make_runnable(self);  // any of them may go on first
  pause("its turn", site);
  return result;
}

void block_barrier(int id, int threads, const Site& site) {
  Block& block = *self->block;
  if (id < 0 || id >= kBlockBarriers) fail(site, "there is no barrier %d", id);
  if (threads % static_cast<int>(kWarp) != 0) fail(site, "a barrier of %d threads, which are no warps", threads);
  BlockBarrier& barrier = block.barriers[id];
  if (barrier.waiting.empty()) {
    barrier.threads = threads;
    barrier.site = site;
  } else if (barrier.threads != threads || !(barrier.site == site)) {
    fail(site, "barrier %d: others of the block wait at line %d", id, barrier.site.line);
  }
  barrier.waiting.push_back(self);
  open_if_full(barrier, threads > 0 ? static_cast<size_t>(threads) : block.live);
  pause("the block", site);
}

void* shared_memory() { return self->block->shared.get(); }
unsigned rank_in_cluster() { return self->block->rank; }
unsigned blocks_in_cluster() { return launched->cluster; }

void* in_block(void* shared, unsigned rank, const Site& site) {
  if (rank >= launched->cluster) fail(site, "the cluster has no block %u", rank);
  if (!is_shared(*self->block, shared)) fail(site, "not in this block's shared memory");
  return cluster->blocks[rank]->shared.get() + (static_cast<char*>(shared) - self->block->shared.get());
}

void arrive_in_cluster(const Site& site) {
  if (self->arrived_in_cluster) fail(site, "a thread arrives twice in the cluster without waiting");
  self->arrived_in_cluster = true;
  self->cluster_phase = cluster->phase;
  ++cluster->arrived;
  open_cluster_if_full();
}

void wait_in_cluster(const Site& site) {
  if (!self->arrived_in_cluster) fail(site, "a thread waits for its cluster without having arrived");
  if (self->cluster_phase == cluster->phase) {
    cluster->waiting.push_back(self);
  } else {
    make_runnable(self);
  }
  pause("the cluster", site);
  self->arrived_in_cluster = false;
}

void make_barrier(uint64_t* barrier, unsigned arrivals, const Site& site) {
  check_aligned(barrier, 8, site);
  Block& block = *self->block;
  if (!is_shared(block, barrier, 8)) fail(site, "a barrier has to be in this block's shared memory");
  if (arrivals == 0 || arrivals >= 1u << 15) fail(site, "a barrier of %u arrivals", arrivals);
  if (!block.mbarriers.insert(barrier).second) fail(site, "a barrier is initialised twice");
  block.unpublished.insert(barrier);
  *reinterpret_cast<PhaseState*>(barrier) = {0, arrivals, arrivals, 0};
}

void publish_barriers() { self->block->unpublished.clear(); }

void arrive(uint64_t* barrier, unsigned bytes, const Site& site) {
  PhaseState& state = phase_of(barrier, site);
  if (state.pending == 0) fail(site, "more arrivals than the barrier was made for");
  state.bytes += static_cast<int32_t>(bytes);
  --state.pending;
  end_phase(barrier, state);
}

void wait(uint64_t* barrier, unsigned parity, const Site& site) {
  if (parity > 1) fail(site, "the parity of a phase is 0 or 1, not %u", parity);
  do {
    if (phase_of(barrier, site).over == parity) {
      cluster->waiters.push_back({self, barrier});
    } else {
      make_runnable(self);
    }
    pause("a barrier in shared memory", site);
  } while (phase_of(barrier, site).over == parity);
}

void copy(Copying how, void* to, const void* from, size_t bytes, uint64_t* barrier, const Site& site) {
  check_aligned(to, 16, site);
  check_aligned(from, 16, site);
  if (bytes % 16 != 0) fail(site, "a bulk copy of %zu bytes, which is no multiple of 16", bytes);
  Block& block = *self->block;
  if (how == Copying::kBulkStore) {
    if (!is_shared(block, from, bytes)) fail(site, "a bulk store of what is not in shared memory");
    if (!self->fenced) fail(site, "a bulk store without a fence behind the writes to shared memory");
  } else {
    if (!is_shared(block, to, bytes)) fail(site, "a copy beyond shared memory");
    std::memset(to, 0xff, bytes);
  }
  if (how == Copying::kBulkLoad) {
    phase_of(barrier, site);
    if (block.unpublished.count(barrier)) fail(site, "the barrier of a copy was not fenced after its initialisation");
  }
  cluster->copies.push_back({how, to, from, bytes, barrier, self, self->groups[static_cast<int>(how)]});
}

void commit(Copying how) {
  ++self->groups[static_cast<int>(how)];
  if (how == Copying::kBulkStore) self->fenced = false;
}

void wait_for_copies(Copying how, int but, const Site& site) {
  const int committed = self->groups[static_cast<int>(how)];
  std::vector<Copy>& copies = cluster->copies;
  for (size_t tries = copies.size(); tries-- > 0;) {
    // From the last to the first: what is carried out makes room for one that was looked at already.
    const Copy& copy = copies[tries];
    if (copy.owner == self && copy.how == how && copy.group < committed - but) carry_out(tries);
  }
  make_runnable(self);
  pause("its turn", site);
}

void fence_bulk_stores() { self->fenced = true; }

void check_aligned(const void* p, size_t bytes, const Site& site) {
  if (reinterpret_cast<uintptr_t>(p) % bytes != 0) fail(site, "%p is not a multiple of %zu", p, bytes);
}

float off_by(float exact, float argument, float error) {
  if (argument == 0.0f || !std::isfinite(exact)) return exact;
  const uint64_t hash = Random{word_of(argument)}.next();
  const float share = static_cast<float>(hash % 2001) / 1000.0f - 1.0f;
  return exact * (1.0f + share * error);
}

void run(dim3 grid, dim3 block, size_t shared_bytes, unsigned in_cluster, void (*body)(const void*),
         const void* arguments) {
  const size_t threads = size_t(block.x) * block.y * block.z, blocks = size_t(grid.x) * grid.y * grid.z;
  const Site site{"launch", 1};
  if (threads == 0 || threads > 1024) fail(site, "a block of %zu threads", threads);
  if (shared_bytes > kMaxSharedBytes) fail(site, "%zu bytes of shared memory", shared_bytes);
  if (blocks == 0 || grid.x > 0x7fffffffu || grid.y > 0xffff || grid.z > 0xffff) fail(site, "%zu blocks", blocks);
  if (in_cluster == 0 || in_cluster > 16 || grid.x % in_cluster != 0) fail(site, "clusters of %u", in_cluster);
  const Launch launch{grid, block, shared_bytes, in_cluster, body, arguments};
  launched = &launch;
  gridDim = grid;
  blockDim = block;
  std::vector<size_t> order(blocks / in_cluster);
  for (size_t i = 0; i < order.size(); ++i) order[i] = i;
  for (size_t i = order.size(); i-- > 1;) std::swap(order[i], order[generator.below(i + 1)]);
  for (size_t index : order) run_cluster(index);
  self = nullptr;
}

}  // namespace kd::emulation

// For tests: what is picked from now on.
extern "C" __attribute__((visibility("default"))) void kd_emulation_seed(uint64_t seed) {
  kd::emulation::generator.state = seed;
}
