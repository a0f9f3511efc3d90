// AKL's split of the vocabulary by the teacher (arXiv 2404.02657); the twin of csrc/cpu/akl_split.h. The head is what
// comes, in descending order of p and ties in order of index, before the running mass exceeds mu, and always the first.
//
// Nothing is sorted: the entry where that happens is found by bisection over the teacher's logits as integers of the
// same order, four parts a sweep. Most of the vocabulary is too improbable to be looked at twice.
#pragma once

#include "row_normal.h"
#include "row_slice.h"
#include "row_team.h"

namespace kd {

// Integers in the order of the floats, zeros of both signs alike.
KD_DEVICE uint32_t order_key(float z) {
  const uint32_t bits = __float_as_uint(z + 0.0f);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

KD_DEVICE float logit_of(uint32_t key) { return __uint_as_float(key & 0x80000000u ? key & 0x7fffffffu : ~key); }

template <int kBytes, class Slice> class AklSplit {
  static constexpr int kEntries = kVectorBytes / kBytes, kWords = 4;

 public:
  KD_DEVICE AklSplit(const RowArguments& of, Slice& slice, Team<Slice::kClustered>& team, const RowPair<kBytes>& pair,
                     const NormalRow& r)
      : of_(of), slice_(slice), team_(team), pair_(pair), r_(r) {}

  // sum |p - q| over the head, as a share of that over all; 1/2 where the sides are the same.
  KD_DEVICE float head_weight() {
    const uint32_t crossing = find_crossing();
    float above = 0.0f, ties = 0.0f;
    const int run = (slice_.vectors() + blockDim.x - 1) / blockDim.x | 1;  // odd: no two lanes in one bank
    const int begin = threadIdx.x * run, end = begin + run < slice_.vectors() ? begin + run : slice_.vectors();
    slice_.sweep(pair_, begin, 1, end, [&](const Place<kBytes>& at) {
      float x[kEntries], y[kEntries];
      at.template read<kWords>(pair_, of_.half, 0, x, y);
#pragma unroll
      for (int k = 0; k < kEntries; ++k) {
        const uint32_t key = key_of(y[k]);
        if (key > crossing) above += exponential_teacher(y[k]);
        if (key == crossing) ties += 1.0f;
      }
    });
    float mass[1] = {above};
    team_.template reduce<Addition>(mass);
    above = mass[0] * r_.inverse_teacher;
    const float value = exponential_teacher(logit_of(crossing << of_.key_shift)) * r_.inverse_teacher;
    float room = floorf((of_.a - above) / value);
    room = max(room, above == 0.0f ? 1.0f : 0.0f);  // the first entry is always of the head

    float rank = team_.count_before(ties);
    Slots head, all;
    slice_.sweep(pair_, begin, 1, end, [&](const Place<kBytes>& at) {
      float x[kEntries], y[kEntries];
      at.template read<kWords>(pair_, of_.half, 0, x, y);
#pragma unroll
      for (int k = 0; k < kEntries; ++k) {
        const uint32_t key = key_of(y[k]);
        const float p = exponential_teacher(y[k]) * r_.inverse_teacher;
        const float gap = abs(p - exp2_fast(fma(x[k], of_.rate_student, r_.offset_student)) * r_.inverse_student);
        const bool tie = key == crossing;
        all.add(k, gap);
        if (key > crossing || (tie && rank < room)) head.add(k, gap);
        if (tie) rank += 1.0f;
      }
    });
    float sum[2] = {head.total(), all.total()};
    team_.template reduce<Addition>(sum);
    return sum[1] > 0.0f ? sum[0] / sum[1] : 0.5f;
  }

 private:
  KD_DEVICE uint32_t key_of(float z) const { return order_key(z) >> of_.key_shift; }
  KD_DEVICE float exponential_teacher(float z) const { return exp2_fast(fma(z, of_.rate_teacher, r_.offset_teacher)); }

  // The largest key with more than mu of the mass at or above it.
  KD_DEVICE uint32_t find_crossing() {
    // Entries so improbable that all of the row would have less than 1 - mu lie below it.
    const float mass = 0.99f * (1.0f - of_.a) / (static_cast<float>(of_.columns) * r_.inverse_teacher);
    uint32_t low = key_of((log2(mass) - r_.offset_teacher) / of_.rate_teacher), high = key_of(r_.highest_teacher) + 1;
#pragma unroll 1
    while (low + 1 < high) {
      const uint32_t step = (high - low + 3) / 4;
      float over[3] = {0.0f, 0.0f, 0.0f};
      slice_.sweep(pair_, threadIdx.x, blockDim.x, slice_.vectors(), [&](const Place<kBytes>& at) {
        float x[kEntries], y[kEntries];
        at.template read<kWords>(pair_, of_.half, 0, x, y);
        float top = y[0];
#pragma unroll
        for (int k = 1; k < kEntries; ++k) top = max(top, y[k]);
        if (key_of(top) < low + step) return;
#pragma unroll
        for (int k = 0; k < kEntries; ++k) {
          const uint32_t key = key_of(y[k]);
          const float e = exponential_teacher(y[k]);
#pragma unroll
          for (int part = 0; part < 3; ++part) {
            if (key >= low + (part + 1) * step) over[part] += e;
          }
        }
      });
      team_.template reduce<Addition>(over);
      uint32_t parts = 0;
#pragma unroll
      for (int part = 0; part < 3; ++part) parts += over[part] * r_.inverse_teacher > of_.a;
      low += parts * step;
      high = parts < 3 && low + step < high ? low + step : high;
    }
    return low;
  }

  const RowArguments& of_;
  Slice& slice_;
  Team<Slice::kClustered>& team_;
  const RowPair<kBytes>& pair_;
  const NormalRow& r_;
};

}  // namespace kd
