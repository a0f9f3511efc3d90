#include "gradient_memory.h"

#include <cstdint>
#include <cstdlib>
#include <mutex>
#include <new>
#include <utility>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace kd {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;

std::mutex g_mutex;
Pages g_kept{nullptr, 0};

// Mapped, not from the heap, which may keep what is freed: memory given back here leaves the process.
#if defined(__linux__)
Pages from_system(size_t bytes) {
  bytes = (bytes + kHugePage - 1) / kHugePage * kHugePage;
  const size_t mapped = bytes + kHugePage;
  void* const start = mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (start == MAP_FAILED) throw std::bad_alloc();
  char* const first = static_cast<char*>(start);
  const size_t before = (kHugePage - reinterpret_cast<uintptr_t>(first) % kHugePage) % kHugePage;
  if (before != 0) munmap(first, before);
  munmap(first + before + bytes, mapped - before - bytes);  // never empty: before < kHugePage
#ifdef MADV_HUGEPAGE
  madvise(first + before, bytes, MADV_HUGEPAGE);
#endif
  return {first + before, bytes};
}

void to_system(Pages pages) {
  if (pages.data != nullptr) munmap(pages.data, pages.bytes);
}
#else
Pages from_system(size_t bytes) {
  bytes = (bytes + kHugePage - 1) / kHugePage * kHugePage;
  void* const data = std::aligned_alloc(kHugePage, bytes);
  if (data == nullptr) throw std::bad_alloc();
  return {data, bytes};
}

void to_system(Pages pages) { std::free(pages.data); }
#endif

Pages swap_kept(Pages pages) {
  const std::lock_guard<std::mutex> lock(g_mutex);
  return std::exchange(g_kept, pages);
}

}  // namespace

Pages take_pages(size_t bytes) {
  const Pages kept = swap_kept({nullptr, 0});
  if (kept.data != nullptr && kept.bytes >= bytes && kept.bytes / 2 <= bytes) return kept;
  to_system(kept);
  return from_system(bytes);
}

void give_pages(Pages pages) { to_system(swap_kept(pages)); }

void release_pages() { to_system(swap_kept({nullptr, 0})); }

}  // namespace kd
