// Loops over independent items on several threads, each with scratch of its own.
#pragma once

#include <omp.h>

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

namespace kd {

struct FreeMemory {
  void operator()(void* p) const { std::free(p); }
};

// One thread's scratch, on a cache line. Up to kKeptScratch bytes it is kept for the thread's next call; null where
// there is no memory.
class ThreadScratch {
 public:
  explicit ThreadScratch(size_t bytes) {
    if (bytes > kKeptScratch) {
      own_.reset(allocate(bytes));
      data_ = own_.get();
      return;
    }
    thread_local std::unique_ptr<void, FreeMemory> kept;
    thread_local size_t capacity = 0;
    if (capacity < bytes) {
      kept.reset();
      capacity = 0;
      kept.reset(allocate(bytes));
      if (!kept) return;
      capacity = bytes;
    }
    data_ = kept.get();
  }
  void* get() const { return data_; }

 private:
  static constexpr size_t kKeptScratch = size_t{8} << 20;
  static void* allocate(size_t bytes) { return std::aligned_alloc(64, (bytes + 63) / 64 * 64); }
  std::unique_ptr<void, FreeMemory> own_;
  void* data_ = nullptr;
};

// Calls body(item, scratch) for each item, on a team of threads that take `run` items at a time. A scratch of no bytes
// is null. Throws std::bad_alloc.
template <class Body> void for_each_item(int64_t items, int team, int64_t run, size_t scratch_bytes, const Body& body) {
  if (team <= 1) {
    const ThreadScratch scratch(scratch_bytes);
    if (!scratch.get() && scratch_bytes > 0) throw std::bad_alloc();
    for (int64_t i = 0; i < items; ++i) body(i, scratch.get());
    return;
  }
  std::atomic<bool> no_memory{false};
#pragma omp parallel num_threads(team)
  {
    const ThreadScratch scratch(scratch_bytes);
    const bool ready = scratch.get() || scratch_bytes == 0;
    if (!ready) no_memory = true;
#pragma omp for schedule(dynamic, run)
    for (int64_t i = 0; i < items; ++i)
      if (ready) body(i, scratch.get());
  }
  if (no_memory) throw std::bad_alloc();
}

// Threads for `items` items of `work` elementary operations in all: some 20 microseconds each repay waking one.
inline int team_for(int64_t items, double work, int threads) {
  if (work < 65536 || items < 2) return 1;
  return int(threads < items ? threads : items);
}

}  // namespace kd
