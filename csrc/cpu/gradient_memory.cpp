#include "gradient_memory.h"

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

Pages from_system(size_t bytes) {
  bytes = (bytes + kHugePage - 1) / kHugePage * kHugePage;
  void* data = std::aligned_alloc(kHugePage, bytes);
  if (data == nullptr) throw std::bad_alloc();
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  madvise(data, bytes, MADV_HUGEPAGE);
#endif
  return {data, bytes};
}

Pages swap_kept(Pages pages) {
  const std::lock_guard<std::mutex> lock(g_mutex);
  return std::exchange(g_kept, pages);
}

}  // namespace

Pages take_pages(size_t bytes) {
  const Pages kept = swap_kept({nullptr, 0});
  if (kept.data != nullptr && kept.bytes >= bytes && kept.bytes / 2 <= bytes) return kept;
  std::free(kept.data);
  return from_system(bytes);
}

void give_pages(Pages pages) { std::free(swap_kept(pages).data); }

void release_pages() { std::free(swap_kept({nullptr, 0}).data); }

}  // namespace kd
