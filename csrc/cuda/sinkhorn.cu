#include "sinkhorn.h"
#include "sinkhorn_launch.h"
#include "sinkhorn_share_kernel.h"
#include "sinkhorn_tile_kernel.h"

namespace kd::cuda {

void run_sinkhorn(const SinkhornCall& call, const Device& device, void* stream) {
  if (call.of.problems == 0) return;
  for_sizes(
      call.of,
      [&](auto size) {
        constexpr int kSize = size(), kEntries = kSize < 64 ? kSize : 64;
        launch_tiles<kSize, kEntries>(sinkhorn_tile_kernel<kSize, kEntries>, call, stream);
      },
      [&] { launch_shares(sinkhorn_share_kernel, call, device, stream); });
}

}  // namespace kd::cuda
