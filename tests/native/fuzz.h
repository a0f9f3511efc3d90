// Random numbers and tensors for the fuzzers.
#pragma once

#include <cmath>
#include <cstring>
#include <memory>
#include <random>

#include "cpu/rows.h"

namespace {

std::mt19937_64 g_random;

int64_t uniform(int64_t low, int64_t high) { return std::uniform_int_distribution<int64_t>(low, high)(g_random); }
bool chance(double p) { return std::uniform_real_distribution<>()(g_random) < p; }

uint16_t bfloat16_bits(float x) {
  uint32_t u;
  std::memcpy(&u, &x, 4);
  return static_cast<uint16_t>(u >> 16);
}

void put(void* data, kd::DType dtype, int64_t at, double x) {
  switch (dtype) {
    case kd::DType::kFloat32: static_cast<float*>(data)[at] = static_cast<float>(x); break;
    case kd::DType::kFloat64: static_cast<double*>(data)[at] = x; break;
    case kd::DType::kBFloat16: static_cast<uint16_t*>(data)[at] = bfloat16_bits(static_cast<float>(x)); break;
    case kd::DType::kFloat16: {
      const _Float16 h = static_cast<_Float16>(x);
      std::memcpy(static_cast<uint16_t*>(data) + at, &h, 2);
    }
  }
}

double get(const void* data, kd::DType dtype, int64_t at) {
  switch (dtype) {
    case kd::DType::kFloat32: return static_cast<const float*>(data)[at];
    case kd::DType::kFloat64: return static_cast<const double*>(data)[at];
    case kd::DType::kBFloat16: {
      const uint32_t u = uint32_t(static_cast<const uint16_t*>(data)[at]) << 16;
      float x;
      std::memcpy(&x, &u, 4);
      return x;
    }
    case kd::DType::kFloat16: {
      _Float16 h;
      std::memcpy(&h, static_cast<const uint16_t*>(data) + at, 2);
      return static_cast<double>(h);
    }
  }
  return NAN;
}

size_t size_of(kd::DType d) { return d == kd::DType::kFloat64 ? 8 : d == kd::DType::kFloat32 ? 4 : 2; }

struct Buffer {  // ends at the last element, so that one step further is an error
  std::unique_ptr<char[]> bytes;
  void* allocate(int64_t elements, kd::DType dtype) {
    bytes.reset(new char[size_t(elements) * size_of(dtype)]);
    return bytes.get();
  }
};

int64_t columns() {
  // About the lanes of a register, the entries of a block (256 registers), and one entry.
  const int64_t edges[] = {1, 2, 7, 8, 9, 15, 16, 17, 31, 32, 33, 255, 256, 257, 2047, 2048, 2049, 4095, 4096, 4097};
  return chance(0.7) ? edges[uniform(0, 19)] : uniform(1, 9000);
}

}  // namespace
