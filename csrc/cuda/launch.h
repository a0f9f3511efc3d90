// Launches of kernels.
#pragma once

#include "primitives.h"

#ifdef __CUDACC__

#include <cuda_runtime.h>

#include <cstddef>
#include <stdexcept>
#include <string>

namespace kd {

inline void check_launch(cudaError_t status) {
  if (status != cudaSuccess) throw std::runtime_error(std::string("CUDA: ") + cudaGetErrorString(status));
}

// kernel<<<grid, block, shared_bytes, stream>>>(args...) in clusters of `cluster` blocks along x. Nothing is allocated
// and nothing waited for, so that a launch can be captured in a graph.
template <class... Parameters, class... Arguments> void launch(void (*kernel)(Parameters...), dim3 grid, dim3 block,
                                                               size_t shared_bytes, unsigned cluster, void* stream,
                                                               Arguments... arguments) {
  constexpr size_t kWithoutAsking = 48 * 1024;  // bytes of shared memory
  constexpr unsigned kPortable = 8;             // blocks of a cluster
  if (shared_bytes > kWithoutAsking) {
    check_launch(
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes)));
  }
  if (cluster > kPortable) {
    check_launch(cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1));
  }
  cudaLaunchAttribute in_clusters{};
  in_clusters.id = cudaLaunchAttributeClusterDimension;
  in_clusters.val.clusterDim = {cluster, 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = static_cast<cudaStream_t>(stream);
  config.attrs = &in_clusters;
  config.numAttrs = cluster > 1 ? 1 : 0;
  check_launch(cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...));
}

}  // namespace kd

#endif
