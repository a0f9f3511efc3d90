#include "sinkhorn.h"
#include "sinkhorn_launch.h"
#include "sinkhorn_share_backward_kernel.h"
#include "sinkhorn_tile_backward_kernel.h"

namespace kd::cuda {

void run_sinkhorn_backward(const SinkhornBackwardCall& call, const Device& device, void* stream) {
  if (call.of.problems == 0) return;
  for_sizes(
      call.of,
      [&](auto size) {
        // With a third array of entries beside the two of K a thread takes fewer of them where it can.
        constexpr int kSize = size(), kEntries = kSize < 128 ? 32 : 64;
        launch_tiles<kSize, kEntries>(sinkhorn_tile_backward_kernel<kSize, kEntries>, call, stream);
      },
      [&] { launch_shares(sinkhorn_share_backward_kernel, call, device, stream); });
}

}  // namespace kd::cuda
