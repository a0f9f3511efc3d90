#include "cuda/device.h"

#include <cuda_runtime_api.h>

#include <stdexcept>
#include <string>

namespace kd {

namespace {

void check(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // said here, so not to be found by whoever asks next
  throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(status));
}

}  // namespace

DeviceGuard::DeviceGuard(int device) : device_(device) {
  check(cudaGetDevice(&before_), "current CUDA device");
  if (device_ != before_) check(cudaSetDevice(device_), "CUDA device of the tensors");
}

DeviceGuard::~DeviceGuard() {
  if (device_ != before_) cudaSetDevice(before_);
}

int runtime_version() { return CUDART_VERSION; }

int driver_version() {
  int version = 0;
  check(cudaDriverGetVersion(&version), "version of the CUDA driver");
  return version;
}

}  // namespace kd
