// Random numbers and tensors for the fuzzers.
#pragma once

#include <sanitizer/asan_interface.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmath>
#include <cstring>
#include <new>
#include <random>
#include <thread>

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

// Ends where a page ends that nobody may touch: masked instructions, which the address sanitizer does not see, must not
// go further either. It sees what others do in front of the buffer.
class Buffer {
 public:
  Buffer() = default;
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() { release(); }

  void* allocate(int64_t elements, kd::DType dtype) {
    release();
    const size_t bytes = size_t(elements) * size_of(dtype), page = size_t(sysconf(_SC_PAGESIZE));
    const size_t usable = (bytes + page - 1) / page * page;
    size_ = usable + page;
    void* pages = mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (pages == MAP_FAILED) throw std::bad_alloc();
    pages_ = static_cast<char*>(pages);
    if (mprotect(pages_ + usable, page, PROT_NONE) != 0) throw std::bad_alloc();
    ASAN_POISON_MEMORY_REGION(pages_, usable - bytes);
    return pages_ + usable - bytes;
  }

 private:
  void release() {
    if (!pages_) return;
    ASAN_UNPOISON_MEMORY_REGION(pages_, size_);
    munmap(pages_, size_);
    pages_ = nullptr;
  }

  char* pages_ = nullptr;
  size_t size_ = 0;
};

// Numbers in a buffer that is NaN, or -1, but for those that are put there.
struct Tensor {
  Buffer buffer;
  void* data;
  kd::DType dtype;

  Tensor(int64_t elements, kd::DType dtype) : data(buffer.allocate(elements, dtype)), dtype(dtype) {
    std::memset(data, 0xff, size_t(elements) * size_of(dtype));
  }
  double set(int64_t at, double x) {
    put(data, dtype, at, x);
    return get(data, dtype, at);
  }
  double operator[](int64_t at) const { return get(data, dtype, at); }
  void* if_wanted(bool wanted) { return wanted ? data : nullptr; }
};

kd::DType real_of(kd::DType dtype) { return dtype == kd::DType::kFloat64 ? kd::DType::kFloat64 : kd::DType::kFloat32; }

// How far a number may be from the one that was rounded to the dtype. Tensors of the dtype of sums are not.
double rounding(double x, kd::DType dtype) { return dtype == real_of(dtype) ? 0 : std::abs(x) / 256 + 6e-8; }

// On a thread of its own, whose scratch is no larger than this call needs, or on a team.
template <class Call> void on_threads(void (*run)(const Call&, int), const Call& call) {
  if (chance(0.5)) {
    std::thread([&] { run(call, 1); }).join();
  } else {
    run(call, int(uniform(1, 3)));
  }
}

int64_t columns() {
  // About the lanes of a register, the entries of a block (256 registers), and one entry.
  const int64_t edges[] = {1, 2, 7, 8, 9, 15, 16, 17, 31, 32, 33, 255, 256, 257, 2047, 2048, 2049, 4095, 4096, 4097};
  return chance(0.7) ? edges[uniform(0, 19)] : uniform(1, 9000);
}

}  // namespace
