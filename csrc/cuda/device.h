// What the binding needs of the CUDA runtime beside launches.
#pragma once

namespace kd {

// Makes a device current while it lives, for the thread, as launches on a stream of that device want it.
class DeviceGuard {
 public:
  // Throws std::runtime_error where there is no such device.
  explicit DeviceGuard(int device);
  ~DeviceGuard();
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int device_, before_;
};

// Version of the runtime linked in, and the newest that the driver serves, 0 where there is no driver: 1000 major + 10
// minor.
int runtime_version();
int driver_version();

}  // namespace kd
