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

constexpr size_t kSharedWithoutAsking = 48 * 1024;  // bytes

// How many clusters of a kernel the device in use runs at a time.
template <class... Parameters>
int resident_clusters(void (*kernel)(Parameters...), dim3 block, size_t shared_bytes, unsigned cluster) {
  if (shared_bytes > kSharedWithoutAsking) {
    check_launch(
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes)));
  }
  int count = 0;
  if (cluster > 1) {
    cudaLaunchAttribute in_clusters{};
    in_clusters.id = cudaLaunchAttributeClusterDimension;
    in_clusters.val.clusterDim = {cluster, 1, 1};
    cudaLaunchConfig_t config{};
    config.gridDim = cluster;
    config.blockDim = block;
    config.dynamicSmemBytes = shared_bytes;
    config.attrs = &in_clusters;
    config.numAttrs = 1;
    check_launch(cudaOccupancyMaxActiveClusters(&count, kernel, &config));
  } else {
    int device, multiprocessors;
    check_launch(cudaGetDevice(&device));
    check_launch(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device));
    const int threads = static_cast<int>(block.x * block.y * block.z);
    check_launch(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&count, kernel, threads, shared_bytes));
    count *= multiprocessors;
  }
  return count > 0 ? count : 1;
}

// kernel<<<grid, block, shared_bytes, stream>>>(args...) in clusters of `cluster` blocks along x. Nothing is allocated
// and nothing waited for, so that a launch can be captured in a graph.
template <class... Parameters, class... Arguments> void launch(void (*kernel)(Parameters...), dim3 grid, dim3 block,
                                                               size_t shared_bytes, unsigned cluster, void* stream,
                                                               Arguments... arguments) {
  constexpr unsigned kPortable = 8;  // blocks of a cluster
  if (shared_bytes > kSharedWithoutAsking) {
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
