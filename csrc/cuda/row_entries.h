// Entries of logits as they lie in shared memory, 16 bytes to a vector, and the float numbers they stand for.
//
// A kernel is compiled for the size of an entry alone. Which of the two types of 16 bits it is says a flag that is the
// same for all threads: a branch a vector, where another instantiation would double what there is to build.
#pragma once

#include "kd/real.h"
#include "primitives.h"

namespace kd {

constexpr int kVectorBytes = 16;

template <int kBytes> struct Entry;  // unsigned integers of that size
template <> struct Entry<2> {
  using Bits = uint16_t;
};
template <> struct Entry<4> {
  using Bits = uint32_t;
};

// kWords words from shared memory at once.
template <int kWords> struct Words;
template <> struct Words<4> {
  uint32_t w[4];
  KD_DEVICE static Words load(const void* p) {
    const uint4 v = *static_cast<const uint4*>(p);
    return {{v.x, v.y, v.z, v.w}};
  }
  KD_DEVICE uint4 vector() const { return make_uint4(w[0], w[1], w[2], w[3]); }
  KD_DEVICE void store(void* p) const { *static_cast<uint4*>(p) = vector(); }
};
template <> struct Words<2> {
  uint32_t w[2];
  KD_DEVICE static Words load(const void* p) {
    const uint2 v = *static_cast<const uint2*>(p);
    return {{v.x, v.y}};
  }
  KD_DEVICE void store(void* p) const { *static_cast<uint2*>(p) = make_uint2(w[0], w[1]); }
};

template <int kBytes, int kWords>
KD_DEVICE void unpack(const Words<kWords>& from, bool half, float (&x)[4 * kWords / kBytes]) {
  if constexpr (kBytes == 4) {
#pragma unroll
    for (int k = 0; k < kWords; ++k) x[k] = __uint_as_float(from.w[k]);
  } else if (half) {
#pragma unroll
    for (int k = 0; k < kWords; ++k) {
      x[2 * k] = from_half(static_cast<uint16_t>(from.w[k]));
      x[2 * k + 1] = from_half(static_cast<uint16_t>(from.w[k] >> 16));
    }
  } else {
#pragma unroll
    for (int k = 0; k < kWords; ++k) {
      x[2 * k] = __uint_as_float(from.w[k] << 16);
      x[2 * k + 1] = __uint_as_float(from.w[k] & 0xffff0000u);
    }
  }
}

template <int kBytes, int kWords> KD_DEVICE Words<kWords> pack(const float (&x)[4 * kWords / kBytes], bool half) {
  Words<kWords> to;
  if constexpr (kBytes == 4) {
#pragma unroll
    for (int k = 0; k < kWords; ++k) to.w[k] = __float_as_uint(x[k]);
  } else if (half) {
#pragma unroll
    for (int k = 0; k < kWords; ++k) to.w[k] = to_half2(x[2 * k], x[2 * k + 1]);
  } else {
#pragma unroll
    for (int k = 0; k < kWords; ++k) to.w[k] = to_bfloat162(x[2 * k], x[2 * k + 1]);
  }
  return to;
}

// The larger entries of 16 bits of either vector in turn, two at a time.
KD_DEVICE uint32_t largest_of(uint32_t so_far, const Words<4>& of, bool half) {
#pragma unroll
  for (int k = 0; k < 4; ++k) so_far = half ? max_half2(so_far, of.w[k]) : max_bfloat162(so_far, of.w[k]);
  return so_far;
}

// Of two vectors that follow one another, the one that begins with entry `entry` of the first, 1 to kEntries - 1.
template <int kBytes> KD_DEVICE Words<4> from_entry(const Words<4>& first, const Words<4>& second, int entry) {
  uint32_t w[8];
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    w[k] = first.w[k];
    w[k + 4] = second.w[k];
  }
  const int word = entry * kBytes / 4, bits = entry * kBytes % 4 * 8;
#pragma unroll
  for (int by = 2; by > 0; by /= 2) {
#pragma unroll
    for (int k = 0; k + by < 8; ++k) w[k] = word & by ? w[k + by] : w[k];
  }
  Words<4> moved;
#pragma unroll
  for (int k = 0; k < 4; ++k) moved.w[k] = static_cast<uint32_t>((uint64_t(w[k + 1]) << 32 | w[k]) >> bits);
  return moved;
}

// Floats in the place of entries. Where an entry has but 16 bits, those above go there and those below to the same
// place of a spare vector.
template <int kBytes, int kWords> KD_DEVICE void keep(const float (&x)[4 * kWords / kBytes], void* place, void* spare) {
  Words<kWords> high, low;
  if constexpr (kBytes == 4) {
#pragma unroll
    for (int k = 0; k < kWords; ++k) high.w[k] = __float_as_uint(x[k]);
  } else {
#pragma unroll
    for (int k = 0; k < kWords; ++k) {
      const uint32_t first = __float_as_uint(x[2 * k]), second = __float_as_uint(x[2 * k + 1]);
      high.w[k] = (first >> 16) | (second & 0xffff0000u);
      low.w[k] = (first & 0xffffu) | (second << 16);
    }
    low.store(spare);
  }
  high.store(place);
}

template <int kBytes, int kWords>
KD_DEVICE void recall(const void* place, const void* spare, float (&x)[4 * kWords / kBytes]) {
  const Words<kWords> high = Words<kWords>::load(place);
  if constexpr (kBytes == 4) {
#pragma unroll
    for (int k = 0; k < kWords; ++k) x[k] = __uint_as_float(high.w[k]);
  } else {
    const Words<kWords> low = Words<kWords>::load(spare);
#pragma unroll
    for (int k = 0; k < kWords; ++k) {
      x[2 * k] = __uint_as_float((high.w[k] << 16) | (low.w[k] & 0xffffu));
      x[2 * k + 1] = __uint_as_float((high.w[k] & 0xffff0000u) | (low.w[k] >> 16));
    }
  }
}

}  // namespace kd
