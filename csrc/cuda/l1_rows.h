// Rows of L1 costs: entries as they lie in memory, and the probabilities they stand for.
//
// Kernels are compiled for the size of an entry. Which of the two types of 16 bits it is says a flag, the same for all
// threads: a branch for several entries, where another instantiation would double what there is to build.
#pragma once

#include "l1_cost.h"
#include "primitives.h"

namespace kd {

constexpr unsigned kAllLanes = 0xffffffffu;

// Neighbouring entries of a row of logits, which a block reads once. How depends on where the row begins; what a thread
// reads does not.
template <int kBytes, int kCount> struct Entries {
  static constexpr int kWords = kBytes * kCount / 4;
  static_assert(kWords == 2 || kWords % 4 == 0, "read by 8 or 16 bytes");
  uint32_t words[kWords];

  // Of those at p the first `count`; 0 for the others, which are not read.
  KD_DEVICE static Entries load(const char* p, int count) {
    constexpr int kAligned = kWords == 2 ? 8 : 16;
    Entries of;
    if (count >= kCount && reinterpret_cast<uintptr_t>(p) % kAligned == 0) {
      if constexpr (kWords == 2) {
        const uint2 two = *reinterpret_cast<const uint2*>(p);
        of.words[0] = two.x;
        of.words[1] = two.y;
      } else {
#pragma unroll
        for (int k = 0; k < kWords; k += 4) {
          const uint4 four = load_streaming16(p + 4 * k);
          of.words[k] = four.x;
          of.words[k + 1] = four.y;
          of.words[k + 2] = four.z;
          of.words[k + 3] = four.w;
        }
      }
    } else {
#pragma unroll
      for (int k = 0; k < kWords; ++k) {
        if constexpr (kBytes == 4) {
          of.words[k] = k < count ? reinterpret_cast<const uint32_t*>(p)[k] : 0;
        } else {
          const uint16_t* entries = reinterpret_cast<const uint16_t*>(p);
          const uint32_t low = 2 * k < count ? entries[2 * k] : 0;
          const uint32_t high = 2 * k + 1 < count ? entries[2 * k + 1] : 0;
          of.words[k] = low | (high << 16);
        }
      }
    }
    return of;
  }

  KD_DEVICE void to_float(bool half, float (&x)[kCount]) const {
    if constexpr (kBytes == 4) {
#pragma unroll
      for (int k = 0; k < kWords; ++k) x[k] = __uint_as_float(words[k]);
    } else if (half) {
#pragma unroll
      for (int k = 0; k < kCount; ++k) x[k] = from_half(static_cast<uint16_t>(words[k / 2] >> (k % 2 * 16)));
    } else {
#pragma unroll
      for (int k = 0; k < kCount; ++k) x[k] = from_bfloat16(static_cast<uint16_t>(words[k / 2] >> (k % 2 * 16)));
    }
  }

  KD_DEVICE static Entries of_float(bool half, const float (&x)[kCount]) {
    Entries of;
#pragma unroll
    for (int k = 0; k < kWords; ++k) {
      if constexpr (kBytes == 4) {
        of.words[k] = __float_as_uint(x[k]);
      } else {
        const uint32_t low = half ? to_half(x[2 * k]) : to_bfloat16(x[2 * k]);
        const uint32_t high = half ? to_half(x[2 * k + 1]) : to_bfloat16(x[2 * k + 1]);
        of.words[k] = low | (high << 16);
      }
    }
    return of;
  }

  KD_DEVICE void store(char* p, int count) const {
    constexpr int kAligned = kWords == 2 ? 8 : 16;
    if (count >= kCount && reinterpret_cast<uintptr_t>(p) % kAligned == 0) {
      if constexpr (kWords == 2) {
        *reinterpret_cast<uint2*>(p) = make_uint2(words[0], words[1]);
      } else {
#pragma unroll
        for (int k = 0; k < kWords; k += 4)
          *reinterpret_cast<uint4*>(p + 4 * k) = make_uint4(words[k], words[k + 1], words[k + 2], words[k + 3]);
      }
    } else {
#pragma unroll
      for (int k = 0; k < kCount; ++k) {
        if (k >= count) continue;
        if constexpr (kBytes == 4) {
          reinterpret_cast<uint32_t*>(p)[k] = words[k];
        } else {
          reinterpret_cast<uint16_t*>(p)[k] = static_cast<uint16_t>(words[k / 2] >> (k % 2 * 16));
        }
      }
    }
  }
};

// Whether a problem has that row, and it counts.
KD_DEVICE bool row_counts(const L1Side& side, int64_t problem, int row) {
  return row < side.rows && (!side.mask || side.mask[problem * side.rows + row] != 0);
}

// A row, and what its probabilities are made with. Those of a row that does not count are 0, and so are its entries.
template <int kBytes> struct L1Row {
  const char* entries;  // null where the row does not count
  float top, rate, inverse;

  // Row `row` of a problem, the student's or else the teacher's. There may be fewer.
  KD_DEVICE static L1Row at(const L1Problems& of, bool student, int64_t problem, int row) {
    const L1Side& side = student ? of.student : of.teacher;
    L1Row found{nullptr, 0.0f, side.rate, 0.0f};
    if (!row_counts(side, problem, row)) return found;
    found.entries =
        static_cast<const char*>(side.entries) + kBytes * (problem * side.problem_stride + row * side.row_stride);
    if (of.softmax) {
      const int64_t line = problem * (of.student.rows + of.teacher.rows) + (student ? 0 : of.student.rows) + row;
      found.top = of.statistics[2 * line];
      found.inverse = of.statistics[2 * line + 1];
    }
    return found;
  }

  // The part of it from a column on.
  KD_DEVICE L1Row from(int column) const {
    return {entries ? entries + int64_t(kBytes) * column : nullptr, top, rate, inverse};
  }

  template <int kCount> KD_DEVICE Entries<kBytes, kCount> load(int column, int columns) const {
    if (entries) return Entries<kBytes, kCount>::load(entries + int64_t(kBytes) * column, columns - column);
    return {};
  }

  // The probability of a logit.
  KD_DEVICE float probability(float x) const { return exp2_fast((x - top) * rate) * inverse; }
};

}  // namespace kd
