// Which kernels a batch is launched for.
#pragma once

#include <type_traits>

#include "launch.h"
#include "sinkhorn_share.h"
#include "sinkhorn_tile.h"

namespace kd::cuda {

// Calls tile(size) for the tiles whose problems the batch may hold, and share() where larger ones may be: without
// lengths all problems are of one size.
template <class OnTile, class OnShare> void for_sizes(const SinkhornProblems& of, OnTile on_tile, OnShare on_share) {
  const int largest = sinkhorn_tile(of.rows, of.columns);
  const auto holds = [&](int size) { return size == largest || (of.lengths && (largest == 0 || size < largest)); };
  if (holds(32)) on_tile(std::integral_constant<int, 32>());
  if (holds(64)) on_tile(std::integral_constant<int, 64>());
  if (holds(128)) on_tile(std::integral_constant<int, 128>());
  if (largest == 0) on_share();
}

// Kernel for tiles of kSize lines with kEntries of each in a thread.
template <int kSize, int kEntries, class Call> void launch_tiles(void (*kernel)(Call), const Call& call, void* stream) {
  using T = Tile<kSize, kEntries>;
  const int64_t blocks = (call.of.problems + T::kProblems - 1) / T::kProblems;
  launch(kernel, dim3(static_cast<unsigned>(blocks)), dim3(T::kBlock), sizeof(typename T::Shared) * T::kProblems, 1,
         stream, call);
}

template <class Call>
void launch_shares(void (*kernel)(Call, bool), const Call& call, const Device& device, void* stream) {
  const SinkhornShape shape = sinkhorn_shape(call.of, device);
  launch(kernel, dim3(static_cast<unsigned>(call.of.problems * shape.blocks)), dim3(Share::kThreads),
         Share::kKernelAt + shape.kernel_bytes, static_cast<unsigned>(shape.blocks), stream, call, shape.on_chip);
}

}  // namespace kd::cuda
