// The sweeps over one row pair. A row is read from memory once: the first sweep leaves the exponentials of both rows in
// scratch that stays in cache, and all that follows works on those.
//
//   exponentials   e = base^(z rate + offset), their sums, and both KLs in their direct form
//   terms          value_v and h_v of a divergence; h replaces the teacher's exponentials, or the gradient is written
//   combine        gradient = factor (h - q sum h)
//
// Float sums run in lanes over blocks of 256 lane-widths and in double across blocks: a fixed order, whatever the
// threads, with errors near 1e-7.
#pragma once

#include "kd/divergence.h"
#include "kd/divergences/kl.h"
#include "storage.h"

KD_BEGIN

template <class S> struct Tempering {  // S: the scalar, float or double
  S rate_student, rate_teacher;        // 1 / T over ln of the base
  S k;                                 // 1 / T of the student
  S ratio;                             // T of the student / T of the teacher
};

template <class S> Tempering<S> tempering(double inverse_student, double inverse_teacher) {
  return {static_cast<S>(inverse_student / kLnBase<S>), static_cast<S>(inverse_teacher / kLnBase<S>),
          static_cast<S>(inverse_student), static_cast<S>(inverse_teacher / inverse_student)};
}

template <class S> struct Normal {      // a normalised row pair
  S offset_student, offset_teacher;     // logarithm of an entry's exponential: z rate + offset
  S inverse_student, inverse_teacher;   // 1 / sum of exponentials
  S shift_student, shift_teacher, gap;  // d = ((z_s - shift_s) - ratio (z_t - shift_t)) k - gap
  double log_sum_student, log_sum_teacher;
  double forward, reverse;  // KL(p, q) and KL(q, p), right to about 1e-7 absolute, where they were asked for
  S mean_log_ratio;         // of log e_s - log e_t under q, in the base, where the reverse KL was asked for; finite
  bool careful;             // some entry may be -inf
  bool defined;             // false where a softmax does not exist: NaN or +inf logits, or all of them -inf
};

// Stands for entries beyond the row's end: exponential 0, and differences of two of them stay finite.
constexpr float kBeyond = -1e30f;
constexpr int64_t kPrefetch = 1024;  // entries ahead of the first sweep

template <class F> constexpr int64_t kBlock = 256 * Traits<F>::kLanes;

// Calls body(i, count, slot) for every register's worth of [0, n): count is the number of entries left where it is
// short of the lanes, slot alternates so that two independent sums hide the latency of an addition. flush() ends a
// block.
template <class F, class Body, class Flush> KD_HD void for_each_block(int64_t n, Body body, Flush flush) {
  constexpr int kLanes = Traits<F>::kLanes;
  for (int64_t begin = 0; begin < n; begin += kBlock<F>) {
    const int64_t end = begin + kBlock<F> < n ? begin + kBlock<F> : n;
    int64_t i = begin;
    for (; i + 2 * kLanes <= end; i += 2 * kLanes) {
      body(i, kLanes, 0);
      body(i + kLanes, kLanes, 1);
    }
    for (; i < end; i += kLanes) body(i, static_cast<int>(end - i < kLanes ? end - i : kLanes), 0);
    flush();
  }
}

template <class F, class T> KD_HD F load_row(const T* p, int count, float fill) {
  constexpr int kLanes = Traits<F>::kLanes;
  return count == kLanes ? Lanes<F>::load(p) : Lanes<F>::load(p, count, fill);
}

template <class F, class T> KD_HD void store_row(T* p, F x, int count) {
  if (count == Traits<F>::kLanes) {
    Lanes<F>::store(p, x);
  } else {
    Lanes<F>::store(p, x, count);
  }
}

template <class F> struct BlockSum {  // two slots, emptied into a double at the end of each block
  F lanes[2] = {F(0.0f), F(0.0f)};
  double total = 0;
  KD_HD void add(int slot, F x) { lanes[slot] = lanes[slot] + x; }
  KD_HD void add_product(int slot, F a, F b) { lanes[slot] = fma(a, b, lanes[slot]); }
  KD_HD void flush() {
    total += reduce_add(lanes[0] + lanes[1]);
    lanes[0] = lanes[1] = F(0.0f);
  }
};

// One lane adds all numbers up by itself, and can do so in double at once.
template <> struct BlockSum<float> {
  double total = 0;
  KD_HD void add(int, float x) { total += double(x); }
  KD_HD void add_product(int, float a, float b) { total += double(a) * double(b); }
  KD_HD void flush() {}
};

// In double there is no wider type to add blocks in; what a sum rounds away is kept beside it (Neumaier 1974).
template <> struct BlockSum<double> {
  double total = 0, sum = 0, lost = 0;
  KD_HD void add(int, double x) {
    const double s = sum + x;
    lost += abs(sum) >= abs(x) ? (sum - s) + x : (x - s) + sum;
    sum = s;
  }
  KD_HD void add_product(int slot, double a, double b) { add(slot, a * b); }
  KD_HD void flush() { total = std::isfinite(sum) ? sum + lost : sum; }
};

struct ExponentialSums {
  double student, teacher;  // sum e_s, sum e_t
  double forward, reverse;  // sum e_t (log e_t - log e_s), sum e_s (log e_s - log e_t)
};

// Careful: an entry that is -inf on one side or both is given its limit. Without it such an entry, or an offset so low
// that a sum overflows, shows as a sum that is not finite.
template <class F, bool Forward, bool Reverse, bool Careful, class T, class S = ScalarOf<F>>
ExponentialSums exponentials(const T* zs, const T* zt, int64_t n, const Tempering<S>& k, S offset_student,
                             S offset_teacher, S* es, S* et) {
  BlockSum<F> student, teacher, forward, reverse;
  const F rate_s(k.rate_student), rate_t(k.rate_teacher), off_s(offset_student), off_t(offset_teacher), zero(S(0));
  for_each_block<F>(
      n,
      [&](int64_t i, int count, int slot) KD_LAMBDA {
        __builtin_prefetch(zs + i + kPrefetch);
        __builtin_prefetch(zt + i + kPrefetch);
        const F x = fma(load_row<F>(zs + i, count, kBeyond), rate_s, off_s);
        const F y = fma(load_row<F>(zt + i, count, kBeyond), rate_t, off_t);
        const F e_s = Careful ? power(x) : power_of_finite(x), e_t = Careful ? power(y) : power_of_finite(y);
        student.add(slot, e_s);
        teacher.add(slot, e_t);
        const F d = y - x;
        if (Forward) forward.add_product(slot, e_t, Careful ? select(e_t > zero, d, zero) : d);
        if (Reverse) reverse.add_product(slot, e_s, Careful ? select(e_s > zero, zero - d, zero) : zero - d);
        Lanes<F>::store(es + i, e_s);
        Lanes<F>::store(et + i, e_t);
      },
      [&]() KD_LAMBDA {
        student.flush();
        teacher.flush();
        if (Forward) forward.flush();
        if (Reverse) reverse.flush();
      });
  return {student.total, teacher.total, forward.total, reverse.total};
}

template <class F, class T> ScalarOf<F> row_max(const T* z, int64_t n) {
  F m(-INFINITY);
  for_each_block<F>(
      n, [&](int64_t i, int count, int) KD_LAMBDA { m = max(load_row<F>(z + i, count, -INFINITY), m); },
      []() KD_LAMBDA {});
  return reduce_max(m);
}

// What the log-ratio of an entry is measured from, once offsets and log-sums are known. Tops: the largest logits.
template <class S> void set_gap(S top_s, S top_t, const Tempering<S>& k, Normal<S>* r) {
  // Log-sum-exp relative to the top logit; `offset` is not exactly -top rate, and the remainder belongs to the sum.
  constexpr double kLn = kLnBase<S>;
  const double z_s = kLn * (r->log_sum_student - (r->offset_student + double(top_s) * k.rate_student));
  const double z_t = kLn * (r->log_sum_teacher - (r->offset_teacher + double(top_t) * k.rate_teacher));
  const double apart = (double(top_s) - double(k.ratio) * top_t) * k.k;
  // Logits of the same height are subtracted as they are, which is exact where they are close; otherwise each from its
  // own top, so that a large common offset on one side does not round the other side away.
  const bool near = apart > -64 && apart < 64;
  r->shift_student = near ? S(0) : top_s;
  r->shift_teacher = near ? S(0) : top_t;
  r->gap = static_cast<S>(z_s - z_t + (near ? apart : 0.0));
}

// First sweep. The offsets come from the largest logit of the first block: any entry may exceed it by 2^100 before a
// sum is in danger, and then the row is swept again from its true maximum.
template <class F, bool Forward, bool Reverse, class T, class S = ScalarOf<F>>
Normal<S> normalise(const T* zs, const T* zt, int64_t n, const Tempering<S>& k, S* es, S* et) {
  constexpr double kLn = kLnBase<S>;
  const int64_t head = n < kBlock<F> ? n : kBlock<F>;
  S top_s = row_max<F>(zs, head), top_t = row_max<F>(zt, head);
  Normal<S> r;
  const auto set_offsets = [&] {
    r.offset_student = -top_s * k.rate_student;
    r.offset_teacher = -top_t * k.rate_teacher;
  };
  const auto safe = [](double x) { return x > -1e30 && x < 1e30; };
  set_offsets();
  ExponentialSums sum =
      exponentials<F, Forward, Reverse, false>(zs, zt, n, k, r.offset_student, r.offset_teacher, es, et);
  r.careful = !(safe(sum.student) && safe(sum.teacher) && safe(sum.forward) && safe(sum.reverse));
  if (r.careful) {
    top_s = row_max<F>(zs, n);
    top_t = row_max<F>(zt, n);
    set_offsets();
    sum = exponentials<F, Forward, Reverse, true>(zs, zt, n, k, r.offset_student, r.offset_teacher, es, et);
  }
  r.defined = sum.student >= 0.5 && sum.teacher >= 0.5 && safe(sum.student) && safe(sum.teacher);
  r.inverse_student = static_cast<S>(1 / sum.student);
  r.inverse_teacher = static_cast<S>(1 / sum.teacher);
  r.log_sum_student = std::log(sum.student) / kLn;
  r.log_sum_teacher = std::log(sum.teacher) / kLn;
  const double mean = sum.reverse / sum.student;
  r.mean_log_ratio = static_cast<S>(mean < kInfiniteMean ? mean : kInfiniteMean);
  r.forward = kLn * (sum.forward / sum.teacher + (r.log_sum_student - r.log_sum_teacher));
  r.reverse = kLn * (mean + (r.log_sum_teacher - r.log_sum_student));

  set_gap(top_s, top_t, k, &r);
  return r;
}

// Entries of a normalised row pair as the divergences see them.
template <class F, class T> struct EntryReader {
  using S = ScalarOf<F>;
  const T* zs;
  const T* zt;
  const S* es;
  const S* et;
  F inv_s, inv_t, shift_s, shift_t, ratio, rate, minus_gap;

  EntryReader(const T* zs, const T* zt, const Tempering<S>& k, const Normal<S>& r, const S* es, const S* et)
      : zs(zs),
        zt(zt),
        es(es),
        et(et),
        inv_s(r.inverse_student),
        inv_t(r.inverse_teacher),
        shift_s(r.shift_student),
        shift_t(r.shift_teacher),
        ratio(k.ratio),
        rate(k.k),
        minus_gap(-r.gap) {}

  template <bool log_ratio> KD_HD Pair<F> read(int64_t i, int count) const {
    const F zero(S(0));
    Pair<F> v{Lanes<F>::load(et + i) * inv_t, Lanes<F>::load(es + i) * inv_s, zero};
    if (log_ratio) {
      const F x = load_row<F>(zs + i, count, kBeyond) - shift_s;
      const F y = load_row<F>(zt + i, count, kBeyond) - shift_t;
      v.d = select(max(v.p, v.q) > zero, fma(fnma(y, ratio, x), rate, minus_gap), zero);
    }
    return v;
  }
};

// Takes the rounding of the two log-sum-exps out of `gap`: sum p (e^d - 1) is the sum of q - p and must be 0, and every
// term of it is known to relative precision. Where the rows are close this is what makes d itself right.
template <class F, class T, class S = ScalarOf<F>>
void refine_gap(const T* zs, const T* zt, int64_t n, const Tempering<S>& k, Normal<S>* r, const S* es, const S* et) {
  BlockSum<F> residue;
  const EntryReader<F, T> entries(zs, zt, k, *r, es, et);
  for_each_block<F>(
      n,
      [&](int64_t i, int count, int slot)
          KD_LAMBDA { residue.add(slot, Sides<F>(entries.template read<true>(i, count)).difference()); },
      [&]() KD_LAMBDA { residue.flush(); });
  const double residue_sum = residue.total;
  if (residue_sum > -0.5 && residue_sum < 1) r->gap = static_cast<S>(r->gap + std::log1p(residue_sum));
}

enum class Emit { kSums, kStash, kGradient };

struct TermSums {
  double value, h;
};

// Second sweep. kStash leaves h in the teacher's exponentials; kGradient, which knows their sum, writes the gradient.
template <Emit emit, class F, class Divergence, class T, class U, class S = ScalarOf<F>>
TermSums terms(const Divergence& divergence, const T* zs, const T* zt, int64_t n, const Tempering<S>& k,
               const Normal<S>& r, const S* es, S* et, U* grad, S factor, S h_sum_known) {
  BlockSum<F> value, h_sum;
  const EntryReader<F, T> entries(zs, zt, k, r, es, et);
  const F scale(factor), minus_sum(-h_sum_known);
  for_each_block<F>(
      n,
      [&](int64_t i, int count, int slot) KD_LAMBDA {
        const Pair<F> v = entries.template read<Divergence::kNeedsLogRatio>(i, count);
        const Term<F> t = divergence(v);
        value.add(slot, t.value);
        if (emit != Emit::kGradient) h_sum.add(slot, t.h);
        if (emit == Emit::kStash) Lanes<F>::store(et + i, t.h);
        if (emit == Emit::kGradient) store_row(grad + i, fma(v.q, minus_sum, t.h) * scale, count);
      },
      [&]() KD_LAMBDA {
        value.flush();
        if (emit != Emit::kGradient) h_sum.flush();
      });
  return {value.total, h_sum.total};
}

// The gradient sweep of a far row of the KL family.
template <bool Forward, bool Reverse, bool Careful, class F, class T, class U, class S = ScalarOf<F>>
void kl_gradient(const T* zs, const T* zt, int64_t n, const Tempering<S>& k, const Normal<S>& r, const S* es,
                 const S* et, S forward, S reverse, S factor, U* grad) {
  const KlGradient<F, Forward, Reverse> gradient{F(forward * factor * r.inverse_student),
                                                 F(-forward * factor * r.inverse_teacher),
                                                 F(reverse * factor * r.inverse_student * S(kLnBase<S>))};
  const F rate_s(k.rate_student), rate_t(k.rate_teacher), off_s(r.offset_student), off_t(r.offset_teacher);
  const F mean(r.mean_log_ratio);
  for_each_block<F>(
      n,
      [&](int64_t i, int count, int) KD_LAMBDA {
        F d = mean;
        if (Reverse) {
          const F x = fma(load_row<F>(zs + i, count, kBeyond), rate_s, off_s);
          const F y = fma(load_row<F>(zt + i, count, kBeyond), rate_t, off_t);
          d = (Careful ? finite(x - y) : x - y) - mean;
        }
        store_row(grad + i, gradient(Lanes<F>::load(es + i), Forward ? Lanes<F>::load(et + i) : d, d), count);
      },
      []() KD_LAMBDA {});
}

// Third sweep. The difference comes before the factor: where the student is certain of an entry it is exactly 0.
template <class F, class U, class S = ScalarOf<F>>
void combine(const S* h, const S* es, int64_t n, S factor, S h_sum, S inverse_student, U* grad) {
  const F scale(factor), minus_sum(-h_sum * inverse_student);
  for_each_block<F>(
      n,
      [&](int64_t i, int count, int) KD_LAMBDA {
        store_row(grad + i, fma(Lanes<F>::load(es + i), minus_sum, Lanes<F>::load(h + i)) * scale, count);
      },
      []() KD_LAMBDA {});
}

// -sum p log p in nats, from a row's exponentials.
template <class F, class T, class S = ScalarOf<F>>
double entropy(const T* z, int64_t n, S rate, S offset, const S* e, double log_sum, S inverse) {
  BlockSum<F> sum;
  const F k(rate), off(offset), zero(S(0));
  for_each_block<F>(
      n,
      [&](int64_t i, int count, int slot) KD_LAMBDA {
        const F w = Lanes<F>::load(e + i);
        const F x = fma(load_row<F>(z + i, count, kBeyond), k, off);
        sum.add_product(slot, w, select(w > zero, x, zero));
      },
      [&]() KD_LAMBDA { sum.flush(); });
  return kLnBase<S> * (log_sum - sum.total * double(inverse));
}

KD_END
