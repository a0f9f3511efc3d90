// csrc/cuda/device.h where there is no device.
#include "cuda/device.h"

namespace kd {

DeviceGuard::DeviceGuard(int device) : device_(device), before_(device) {}
DeviceGuard::~DeviceGuard() = default;

int runtime_version() { return 0; }
int driver_version() { return 0; }

}  // namespace kd
