// One row of a divergence from start to end by the blocks of a team; the twin of csrc/cpu/row_kernel.h. Of entries
// nothing but the logits is kept, and exponentials are computed again in every sweep:
//
//   tops           the largest logits
//   exponentials   their sums, and the KLs in their direct form
//   terms          sums of value_v and h_v of a divergence; where the slice has room for it h replaces the teacher
//   gradient       factor (h - q sum h)
//
// Float sums run in two slots for every thread, at most a few hundred terms each, and then up a tree.
#pragma once

#include "row_akl.h"
#include "row_families.h"
#include "row_kernels.h"
#include "row_normal.h"
#include "row_slice.h"
#include "row_team.h"

namespace kd {

// From this value on a difference of sums or probabilities, right to an epsilon or so absolute, is as good as any
// result in the same precision. Rows below it get the exact form.
constexpr float kFarRow = 1.0f / 64;

// An entry may exceed the logit that offsets come from by 2^100 before a sum is in danger.
KD_DEVICE bool is_safe(float x) { return x > -1e30f && x < 1e30f; }

template <class Family, int kBytes, class Slice> class RowKernel {
  static constexpr int kWide = 4, kNarrow = 2;  // words of a side at a time: in the sweeps of far and of near rows
  static constexpr int kEntries = kVectorBytes / kBytes;

 public:
  KD_DEVICE RowKernel(const RowArguments& arguments, Slice& slice, Team<Slice::kClustered>& team)
      : of_(arguments), slice_(slice), team_(team) {}

  // The row is in the slice, and counts.
  KD_DEVICE void run(int64_t row, const RowPair<kBytes>& pair, float weight) {
    normalise(pair);
    // 0, or NaN where a softmax does not exist: NaN or +inf logits, or all of them -inf. Minima and maxima drop a NaN,
    // and so may a near row: it must show.
    const float poison = 0.0f * (r_.inverse_student + r_.inverse_teacher);
    float factor = weight * of_.scale * of_.k + poison;
    if (of_.upstream) factor *= of_.upstream[row];
    if (of_.normalizer) factor *= 1.0f / *of_.normalizer;
    if (of_.student_entropy) write_entropies(row, pair);
    const float value = divergence(pair, factor);
    if (team_.rank() == 0 && threadIdx.x == 0) {
      of_.value[row] = weight * of_.scale * (value < 0.0f ? 0.0f : value) + poison;
    }
  }

 private:
  struct Sums {
    float value, h;
  };
  struct Exponentials {
    float x, y, student, teacher;  // x, y: log2 of them
  };

  template <class Body> KD_DEVICE void sweep(const RowPair<kBytes>& pair, const Body& body) {
    slice_.sweep(pair, threadIdx.x, blockDim.x, slice_.vectors(), body);
  }

  KD_DEVICE Exponentials exponentials(float z_s, float z_t) const {
    const float x = fma(z_s, of_.rate_student, r_.offset_student), y = fma(z_t, of_.rate_teacher, r_.offset_teacher);
    return {x, y, exp2_fast(x), exp2_fast(y)};
  }

  // An entry as the near forms see it.
  KD_DEVICE Pair<float> near_pair(float z_s, float z_t) const {
    const Exponentials e = exponentials(z_s, z_t);
    const float p = e.teacher * r_.inverse_teacher, q = e.student * r_.inverse_student;
    const float d = fma(fnma(z_t - r_.shift_teacher, of_.ratio, z_s - r_.shift_student), of_.k, -r_.gap);
    return {p, q, select(max(p, q) > 0.0f, d, 0.0f)};
  }

  KD_DEVICE float divergence(const RowPair<kBytes>& pair, float factor) {
    if constexpr (Family::kIsKl) {
      float a = of_.a, b = of_.b;
      if constexpr (Family::kIsAkl) {
        a = AklSplit<kBytes, Slice>(of_, slice_, team_, pair, r_).head_weight();
        b = 1.0f - a;
      }
      // A weight of zero leaves its side out even where that is infinite.
      const float value = (Family::kForward && a > 0.0f ? a * r_.forward : 0.0f) +
                          (Family::kReverse && b > 0.0f ? b * r_.reverse : 0.0f);
      if (!(value >= kFarRow)) return near_row(pair, Family::near(a, b), factor);
      if (pair.grad) write_kl_gradient(pair, a, b, factor);
      return value;
    } else if constexpr (Family::kValueFirst) {
      const Sums sums = terms<kWide>(pair, false, 0.0f, far_terms());
      if (!(sums.value >= kFarRow)) return near_row(pair, Family::near(of_.a, of_.b), factor);
      if (pair.grad) write_far_gradient(pair, sums.h, factor);
      return sums.value;
    } else {
      if (!(of_.curvature * r_.forward >= kFarRow)) return near_row(pair, Family::near(of_.a, of_.b), factor);
      return terms<kWide>(pair, pair.grad != nullptr, factor, far_terms()).value;
    }
  }

  // First sweeps. Offsets come from the largest logits: on chip of the row; of a row that is streamed, of its first
  // vectors, and where an entry exceeds those too far the row is swept again.
  KD_DEVICE void normalise(const RowPair<kBytes>& pair) {
    const int all = slice_.vectors();
    int looked_at = Slice::kClustered || all < static_cast<int>(blockDim.x) ? all : blockDim.x;
    float top[2], sum[4];
#pragma unroll 1
    for (;;) {
      tops(pair, looked_at, top);
      r_.offset_student = -top[0] * of_.rate_student;
      r_.offset_teacher = -top[1] * of_.rate_teacher;
      sums(pair, sum);
      if (looked_at == all || (is_safe(sum[0]) && is_safe(sum[1]) && is_safe(sum[2]) && is_safe(sum[3]))) break;
      looked_at = all;
    }
    const bool defined = sum[0] >= 0.5f && sum[1] >= 0.5f && is_safe(sum[0]) && is_safe(sum[1]);
    r_.inverse_student = defined ? 1.0f / sum[0] : NAN;
    r_.inverse_teacher = 1.0f / sum[1];
    r_.highest_teacher = looked_at == all ? top[1] : INFINITY;
    const float log_ratio = log(sum[0] * r_.inverse_teacher) * log2_e<float>();
    r_.log_ratio = log_ratio;
    const float mean = sum[3] * r_.inverse_student;
    r_.mean_log_ratio = min(mean, static_cast<float>(kInfiniteMean));
    r_.forward = ln2<float>() * (sum[2] * r_.inverse_teacher + log_ratio);
    r_.reverse = ln2<float>() * (mean - log_ratio);

    // Log-sum-exp relative to the top logit: the offset is not exactly -top rate, and the remainder belongs to the sum.
    const float remainder =
        fma(top[0], of_.rate_student, r_.offset_student) - fma(top[1], of_.rate_teacher, r_.offset_teacher);
    const float apart = fnma(of_.ratio, top[1], top[0]) * of_.k;
    // Logits of the same height are subtracted as they are, which is exact where they are close; otherwise each from
    // its own top, so that a large common offset on one side does not round the other side away.
    const bool near = apart > -64.0f && apart < 64.0f;
    r_.gap = ln2<float>() * (log_ratio - remainder) + (near ? apart : 0.0f);
    r_.shift_student = near ? 0.0f : top[0];
    r_.shift_teacher = near ? 0.0f : top[1];
  }

  KD_DEVICE void tops(const RowPair<kBytes>& pair, int count, float (&top)[2]) {
    top[0] = top[1] = -INFINITY;
    const uint32_t lowest = of_.half ? 0xfc00fc00u : 0xff80ff80u;  // -inf twice
    uint32_t tops_student = lowest, tops_teacher = lowest;
    slice_.sweep(pair, threadIdx.x, blockDim.x, count, [&](const Place<kBytes>& at) {
      if (kBytes == 2 && pair.has_all(at.entry)) {
        tops_student = largest_of(tops_student, Words<4>::load(at.student), of_.half);
        tops_teacher = largest_of(tops_teacher, Words<4>::load(at.teacher), of_.half);
        return;
      }
      float x[kEntries], y[kEntries];
      at.template read<kWide>(pair, of_.half, 0, x, y);
#pragma unroll
      for (int k = 0; k < kEntries; ++k) {
        top[0] = max(top[0], x[k]);
        top[1] = max(top[1], y[k]);
      }
    });
    if constexpr (kBytes == 2) {
      float x[4], y[4];
      unpack<2>(Words<2>{{tops_student, lowest}}, of_.half, x);
      unpack<2>(Words<2>{{tops_teacher, lowest}}, of_.half, y);
      top[0] = max(top[0], max(x[0], x[1]));
      top[1] = max(top[1], max(y[0], y[1]));
    }
    team_.template reduce<Maximum>(top);
  }

  // sum e_s, sum e_t, sum e_t log2(e_t / e_s), sum e_s log2(e_s / e_t).
  KD_DEVICE void sums(const RowPair<kBytes>& pair, float (&sum)[4]) {
    Slots student, teacher, forward, reverse;
    sweep(pair, [&](const Place<kBytes>& at) {
      float x[kEntries], y[kEntries];
      at.template read<kWide>(pair, of_.half, 0, x, y);
#pragma unroll
      for (int k = 0; k < kEntries; ++k) {
        const Exponentials e = exponentials(x[k], y[k]);
        student.add(k, e.student);
        teacher.add(k, e.teacher);
        const float d = e.y - e.x;
        // An entry that is -inf on one side or both has its limit.
        if (Family::kForward && e.teacher > 0.0f) forward.add_product(k, e.teacher, d);
        if (Family::kReverse && e.student > 0.0f) reverse.add_product(k, -e.student, d);
      }
    });
    sum[0] = student.total();
    sum[1] = teacher.total();
    sum[2] = forward.total();
    sum[3] = reverse.total();
    team_.template reduce<Addition>(sum);
  }

  // -sum p log p in nats.
  KD_DEVICE void write_entropies(int64_t row, const RowPair<kBytes>& pair) {
    Slots student, teacher;
    sweep(pair, [&](const Place<kBytes>& at) {
#pragma unroll 1
      for (int part = 0; part < kWide / kNarrow; ++part) {
        float x[kEntries / 2], y[kEntries / 2];
        at.template read<kNarrow>(pair, of_.half, part, x, y);
#pragma unroll
        for (int k = 0; k < kEntries / 2; ++k) {
          const Exponentials e = exponentials(x[k], y[k]);
          if (e.student > 0.0f) student.add_product(k, e.student, e.x);
          if (e.teacher > 0.0f) teacher.add_product(k, e.teacher, e.y);
        }
      }
    });
    float sum[2] = {student.total(), teacher.total()};
    team_.template reduce<Addition>(sum);
    if (team_.rank() == 0 && threadIdx.x == 0) {
      of_.student_entropy[row] = -log(r_.inverse_student) - ln2<float>() * sum[0] * r_.inverse_student;
      of_.teacher_entropy[row] = -log(r_.inverse_teacher) - ln2<float>() * sum[1] * r_.inverse_teacher;
    }
  }

  // Takes the rounding of the two log-sum-exps out of `gap`: sum p (e^d - 1) is the sum of q - p and must be 0, and
  // every term of it is known to relative precision. Where the rows are close this is what makes d itself right.
  KD_DEVICE void refine_gap(const RowPair<kBytes>& pair) {
    Slots residue;
    sweep(pair, [&](const Place<kBytes>& at) {
#pragma unroll 1
      for (int part = 0; part < kWide / kNarrow; ++part) {
        float x[kEntries / 2], y[kEntries / 2];
        at.template read<kNarrow>(pair, of_.half, part, x, y);
#pragma unroll
        for (int k = 0; k < kEntries / 2; ++k) residue.add(k, Sides<float>(near_pair(x[k], y[k])).difference());
      }
    });
    float sum[1] = {residue.total()};
    team_.template reduce<Addition>(sum);
    if (sum[0] > -0.5f && sum[0] < 1.0f) r_.gap += log1p(sum[0]).value;
  }

  template <class Divergence>
  KD_DEVICE float near_row(const RowPair<kBytes>& pair, const Divergence& divergence, float factor) {
    refine_gap(pair);
    return terms<kNarrow>(pair, pair.grad != nullptr, factor,
                          [&](float z_s, float z_t, float* q) {
                            const Pair<float> v = near_pair(z_s, z_t);
                            *q = v.q;
                            return divergence(v);
                          })
        .value;
  }

  struct Logs {
    float x, y;  // log2 of the exponentials
    float d;     // log2 q - log2 p; NaN where both are -inf
  };

  KD_DEVICE Logs logs(float z_s, float z_t) const {
    const float x = fma(z_s, of_.rate_student, r_.offset_student), y = fma(z_t, of_.rate_teacher, r_.offset_teacher);
    return {x, y, (x - y) - r_.log_ratio};
  }

  // An entry's terms in the far form, and its q.
  KD_DEVICE auto far_terms() const {
    return [this](float z_s, float z_t, float* q) {
      const Logs of = logs(z_s, z_t);
      LogSides<float> v;
      v.below = of.d <= 0.0f;
      v.big = exp2_fast(v.below ? of.y : of.x) * (v.below ? r_.inverse_teacher : r_.inverse_student);
      v.x = min(abs(of.d), kFarApart<float>);  // also of a NaN
      v.ratio = exp2_fast(-v.x);
      *q = v.q();
      return Family::far(v, of_.a);
    };
  }

  // Sums of the terms, then the gradient: from h where it was kept, else from the terms again, by the same code.
  template <int kWords, class Terms>
  KD_DEVICE Sums terms(const RowPair<kBytes>& pair, bool with_gradient, float factor, const Terms& term_of) {
    constexpr int kCount = 4 * kWords / kBytes;
    const bool keep_h = Slice::kClustered && !Family::kIsKl && of_.keeps && with_gradient;
    const int passes = with_gradient && !keep_h ? 2 : 1;
    Sums sums;
#pragma unroll 1
    for (int pass = 0; pass < passes; ++pass) {
      Slots of_value, of_h;
      sweep(pair, [&](const Place<kBytes>& at) {
#pragma unroll 1
        for (int part = 0; part < kWide / kWords; ++part) {
          float x[kCount], y[kCount], h[kCount];
          at.template read<kWords>(pair, of_.half, part, x, y);
#pragma unroll
          for (int k = 0; k < kCount; ++k) {
            float q;
            const Term<float> t = term_of(x[k], y[k], &q);
            of_value.add(k, t.value);
            of_h.add(k, t.h);
            h[k] = t.h;
            x[k] = q;
          }
          if (keep_h) {
            keep<kBytes, kWords>(h, at.teacher_part(part * kWords), at.spare_part(part * kWords));
          } else if (pass == 1) {
#pragma unroll
            for (int k = 0; k < kCount; ++k) h[k] = fma(x[k], -sums.h, h[k]) * factor;
            pack<kBytes, kWords>(h, of_.half).store(at.student_part(part * kWords));
          }
        }
        if (pass == 1) slice_.write_gradient(pair, at, Words<4>::load(at.student));
      });
      if (pass == 0) {
        float sum[2] = {of_value.total(), of_h.total()};
        team_.template reduce<Addition>(sum);
        sums = {sum[0], sum[1]};
      }
    }
    if (keep_h) combine(pair, sums.h, factor);
    if (with_gradient) slice_.finish_gradient(pair);
    return sums;
  }

  // The gradient from h. The difference comes before the factor: where the student is certain of an entry it is 0.
  KD_DEVICE void combine(const RowPair<kBytes>& pair, float h_sum, float factor) {
    const float minus_sum = -h_sum * r_.inverse_student;
    sweep(pair, [&](const Place<kBytes>& at) {
      float x[kEntries], h[kEntries];
      unpack<kBytes>(Words<kWide>::load(at.student), of_.half, x);
      recall<kBytes, kWide>(at.teacher, at.spare, h);
#pragma unroll
      for (int k = 0; k < kEntries; ++k) {
        const float e = exp2_fast(fma(x[k], of_.rate_student, r_.offset_student));
        h[k] = fma(e, minus_sum, h[k]) * factor;
      }
      slice_.write_gradient(pair, at, pack<kBytes, kWide>(h, of_.half));
    });
  }

  // The gradient where h costs less to compute again than to keep.
  KD_DEVICE void write_far_gradient(const RowPair<kBytes>& pair, float h_sum, float factor) {
    sweep(pair, [&](const Place<kBytes>& at) {
      float x[kEntries], y[kEntries];
      at.template read<kWide>(pair, of_.half, 0, x, y);
#pragma unroll
      for (int k = 0; k < kEntries; ++k) {
        const Logs of = logs(x[k], y[k]);
        const float q = exp2_fast(of.x) * r_.inverse_student;
        x[k] = fma(q, -h_sum, Family::far_h(of.d, q)) * factor;
      }
      slice_.write_gradient(pair, at, pack<kBytes, kWide>(x, of_.half));
    });
    slice_.finish_gradient(pair);
  }

  // Of a far row of the KL family. Logarithms are those of the very floats whose mean is taken off them, so that the
  // gradient vanishes where the student is certain.
  KD_DEVICE void write_kl_gradient(const RowPair<kBytes>& pair, float forward, float reverse, float factor) {
    const KlGradient<float, Family::kForward, Family::kReverse> gradient{
        forward * factor * r_.inverse_student, -forward * factor * r_.inverse_teacher,
        reverse * factor * r_.inverse_student * ln2<float>()};
    sweep(pair, [&](const Place<kBytes>& at) {
      float x[kEntries], y[kEntries];
      at.template read<kWide>(pair, of_.half, 0, x, y);
#pragma unroll
      for (int k = 0; k < kEntries; ++k) {
        const Exponentials e = exponentials(x[k], y[k]);
        x[k] = gradient(e.student, e.teacher, finite(e.x - e.y) - r_.mean_log_ratio);
      }
      slice_.write_gradient(pair, at, pack<kBytes, kWide>(x, of_.half));
    });
    slice_.finish_gradient(pair);
  }

  const RowArguments& of_;
  Slice& slice_;
  Team<Slice::kClustered>& team_;
  NormalRow r_;
};

// Entries [begin, end) of a gradient row, by all threads of all blocks that work on the row.
template <int kBytes>
KD_DEVICE void clear(typename Entry<kBytes>::Bits* grad, int begin, int end, unsigned block, unsigned blocks) {
  constexpr int kEntries = kVectorBytes / kBytes;
  const int phase = phase_of(grad);
  const int last = (phase + end + kEntries - 1) / kEntries;
#pragma unroll 1
  for (int v = (phase + begin) / kEntries + threadIdx.x + block * blockDim.x; v < last; v += blockDim.x * blocks) {
    const int entry = v * kEntries - phase;
    if (entry >= begin && entry + kEntries <= end) {
      store_streaming16(grad + entry, make_uint4(0, 0, 0, 0));
    } else {
#pragma unroll 1
      for (int k = 0; k < kEntries; ++k) {
        if (entry + k >= begin && entry + k < end) grad[entry + k] = 0;
      }
    }
  }
}

// What is left to do for a row: all of it where it does not count, else the entries of the gradient beyond the columns.
template <int kBytes>
KD_DEVICE void finish_row(const RowArguments& of, int64_t row, bool counts, unsigned block, unsigned blocks) {
  if (!counts && block == 0 && threadIdx.x == 0) {
    of.value[row] = 0.0f;
    if (of.student_entropy) of.student_entropy[row] = of.teacher_entropy[row] = 0.0f;
  }
  if (of.grad) {
    auto* grad = static_cast<typename Entry<kBytes>::Bits*>(of.grad) + row * of.grad_stride;
    clear<kBytes>(grad, counts ? of.columns : 0, of.width, block, blocks);
  }
}

template <class Family, int kBytes> __global__ void __launch_bounds__(kMaxRowThreads, kRowBlocks)
    row_kernel_on_chip(RowArguments of) {
#if KD_HAS_CLUSTERS
  using Slice = OnChipSlice<kBytes>;
  auto* memory = dynamic_shared<RowMemory>();
  Team<true> team(&memory->team);
  Slice slice(memory->vectors(), of.slice, &memory->arrived);
  if (threadIdx.x == 0) {
    barrier_init(&memory->arrived, 1);
    barrier_init_fence();
  }
  team.sync();  // also: no block writes to another that has not started
  const int64_t teams = gridDim.x / team.size();
#pragma unroll 1
  for (int64_t row = blockIdx.x / team.size(); row < of.rows; row += teams) {
    const float weight = of.weight ? of.weight[row] : 1.0f;
    if (weight != 0.0f) {  // else the row is not read: it may hold anything
      const RowPair<kBytes> pair(of, row);
      const int begin = team.rank() * of.slice, end = begin + of.slice, all = pair.vectors();
      slice.fetch(pair, begin, end < all ? end : all);
      RowKernel<Family, kBytes, Slice>(of, slice, team).run(row, pair, weight);
      slice.release();
    }
    finish_row<kBytes>(of, row, weight != 0.0f, team.rank(), team.size());
  }
#endif
}

template <class Family, int kBytes> __global__ void __launch_bounds__(kMaxRowThreads, kRowBlocks)
    row_kernel_streamed(RowArguments of) {
  using Slice = StreamedSlice<kBytes>;
  auto* memory = dynamic_shared<RowMemory>();
  Team<false> team(&memory->team);
  Slice slice(memory->vectors());
#pragma unroll 1
  for (int64_t row = blockIdx.x; row < of.rows; row += gridDim.x) {
    const float weight = of.weight ? of.weight[row] : 1.0f;
    if (weight != 0.0f) {
      const RowPair<kBytes> pair(of, row);
      slice.fetch(pair, 0, pair.vectors());
      RowKernel<Family, kBytes, Slice>(of, slice, team).run(row, pair, weight);
    }
    finish_row<kBytes>(of, row, weight != 0.0f, 0, 1);
  }
}

template <class Family> RowKernels row_kernels(int entry_bytes) {
  if (entry_bytes == 2) return {row_kernel_on_chip<Family, 2>, row_kernel_streamed<Family, 2>};
  return {row_kernel_on_chip<Family, 4>, row_kernel_streamed<Family, 4>};
}

}  // namespace kd
