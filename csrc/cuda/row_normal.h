// What the sweeps over a row share: sums over a thread's entries, and the scalars of a normalised row pair.
#pragma once

#include "kd/real.h"
#include "primitives.h"

namespace kd {

struct Slots {  // two sums side by side, so that an addition need not wait for the last
  float of[2] = {0.0f, 0.0f};
  KD_DEVICE void add(int k, float x) { of[k & 1] += x; }
  KD_DEVICE void add_product(int k, float a, float b) { of[k & 1] = fma(a, b, of[k & 1]); }
  KD_DEVICE float total() const { return of[0] + of[1]; }
};

struct NormalRow {                          // a normalised row pair
  float offset_student, offset_teacher;     // log2 of an entry's exponential is z rate + offset
  float inverse_student, inverse_teacher;   // 1 / sum of exponentials
  float log_ratio;                          // log2 of the student's sum over the teacher's
  float shift_student, shift_teacher, gap;  // d = ((z_s - shift_s) - ratio (z_t - shift_t)) k - gap
  float forward, reverse;                   // the KLs, right to about 1e-7 absolute, where they are asked for
  float mean_log_ratio;                     // of log2 (e_s / e_t) under q, where the reverse KL is; finite
  float highest_teacher;                    // no logit of the teacher is higher
};

}  // namespace kd
