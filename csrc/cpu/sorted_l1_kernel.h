// One row of sorted_l1.h. Logits are sorted by their bits, least significant digit first: that is stable, takes as many
// passes as their dtype has digits, and none for a digit in which all agree.
#pragma once

#include <algorithm>
#include <cstring>
#include <limits>

#include "row_sweeps.h"
#include "sorted_l1.h"

KD_BEGIN

template <class T> struct KeyOf {
  using Type = uint32_t;
  static constexpr int kBits = 16;  // of a key, from the lowest
  static Type bits(T x) { return x.bits; }
  static T value(Type bits) { return {static_cast<uint16_t>(bits)}; }
};

template <> struct KeyOf<float> {
  using Type = uint32_t;
  static constexpr int kBits = 32;
  static Type bits(float x) { return bits_of(x); }
  static float value(Type bits) { return from_bits(bits); }
};

template <> struct KeyOf<double> {
  using Type = uint64_t;
  static constexpr int kBits = 64;
  static Type bits(double x) {
    Type u;
    std::memcpy(&u, &x, 8);
    return u;
  }
  static double value(Type bits) {
    double x;
    std::memcpy(&x, &bits, 8);
    return x;
  }
};

// Ascending keys are descending numbers: positive numbers in reverse, then negative ones as they are. Both zeros have
// one key, so that a sort that is stable leaves them in place.
template <class T> KD_HD typename KeyOf<T>::Type key_of(T x) {
  using Key = typename KeyOf<T>::Type;
  constexpr Key kSign = Key(1) << (KeyOf<T>::kBits - 1);
  const Key bits = KeyOf<T>::bits(x);
  return (bits & Key(~kSign)) == 0 ? kSign - 1 : (bits & kSign) ? bits : Key(~bits) & Key(kSign - 1);
}

template <class T> KD_HD T number_of(typename KeyOf<T>::Type key) {
  using Key = typename KeyOf<T>::Type;
  constexpr Key kSign = Key(1) << (KeyOf<T>::kBits - 1);
  return KeyOf<T>::value((key & kSign) ? key : Key(~key) & Key(kSign - 1));
}

// Sorts keys, and with WithColumns the columns beside them; `other` is room for as many. Returns whether the result is
// in `other`.
template <class T, bool WithColumns, class Key = typename KeyOf<T>::Type>
bool sort_by_digits(Key* keys, Key* other_keys, uint32_t* columns, uint32_t* other_columns, int64_t n) {
  constexpr int kDigit = KeyOf<T>::kBits == 16 ? 8 : 11;
  constexpr int kBuckets = 1 << kDigit, kPasses = (KeyOf<T>::kBits + kDigit - 1) / kDigit;
  uint32_t counts[kPasses][kBuckets] = {};
  for (int64_t i = 0; i < n; ++i)
    for (int pass = 0; pass < kPasses; ++pass) ++counts[pass][(keys[i] >> (pass * kDigit)) & (kBuckets - 1)];
  bool in_other = false;
  for (int pass = 0; pass < kPasses; ++pass) {
    uint32_t* count = counts[pass];
    const int shift = pass * kDigit;
    if (n == 0 || int64_t(count[(keys[0] >> shift) & (kBuckets - 1)]) == n) continue;
    uint32_t begin = 0;
    for (int d = 0; d < kBuckets; ++d) {
      const uint32_t size = count[d];
      count[d] = begin;
      begin += size;
    }
    for (int64_t i = 0; i < n; ++i) {
      const uint32_t at = count[(keys[i] >> shift) & (kBuckets - 1)]++;
      other_keys[at] = keys[i];
      if (WithColumns) other_columns[at] = columns[i];
    }
    std::swap(keys, other_keys);
    std::swap(columns, other_columns);
    in_other = !in_other;
  }
  return in_other;
}

template <class F, class Ts, class Tt> struct SortedRow {
  using S = ScalarOf<F>;
  static constexpr int kLanes = Traits<F>::kLanes;

  static void run(const SortedCall& call, int64_t row, void* scratch) {
    const S factor = call.factor ? static_cast<const S*>(call.factor)[row] : S(1);
    Ts* gradient = call.gradient ? static_cast<Ts*>(call.gradient) + row * call.student_columns : nullptr;
    if (factor == S(0)) {
      static_cast<S*>(call.loss)[row] = S(0);
      if (gradient)
        for (int64_t v = 0; v < call.student_columns; ++v) narrow(S(0), gradient + v);
      return;
    }
    const int64_t n = call.student_columns, m = call.teacher_columns;
    const int64_t room = scratch_row(n), teacher_room = scratch_row(m);
    S* q = static_cast<S*>(scratch);
    S* p = q + room;
    auto* keys = reinterpret_cast<typename KeyOf<Ts>::Type*>(p + teacher_room);
    auto* teacher_keys = reinterpret_cast<typename KeyOf<Tt>::Type*>(keys + 2 * room);
    auto* columns = reinterpret_cast<uint32_t*>(teacher_keys + 2 * teacher_room);

    const Ts* z = static_cast<const Ts*>(call.student.data) + row * call.student.row_stride;
    const Tt* zt = static_cast<const Tt*>(call.teacher.data) + row * call.teacher.row_stride;
    for (int64_t v = 0; v < n; ++v) keys[v] = key_of(z[v]);
    for (int64_t v = 0; v < m; ++v) teacher_keys[v] = key_of(zt[v]);
    if (gradient) {
      for (int64_t v = 0; v < n; ++v) columns[v] = static_cast<uint32_t>(v);
      if (sort_by_digits<Ts, true>(keys, keys + room, columns, columns + room, n)) {
        keys += room;
        columns += room;
      }
    } else if (sort_by_digits<Ts, false>(keys, keys + room, nullptr, nullptr, n)) {
      keys += room;
    }
    if (sort_by_digits<Tt, false>(teacher_keys, teacher_keys + teacher_room, nullptr, nullptr, m)) {
      teacher_keys += teacher_room;
    }
    probabilities<Ts>(keys, n, call.inverse_temperature_student, q);
    probabilities<Tt>(teacher_keys, m, call.inverse_temperature_teacher, p);

    // Ranks beyond one side's vocabulary compare with 0.
    const int64_t common = std::min({n, m, call.limit});
    BlockSum<F> loss, mean;  // mean: sum q sign(q - p)
    for_each_block<F>(
        common,
        [&](int64_t v, int count, int slot) KD_LAMBDA {
          const F x = load_row<F>(q + v, count, S(0)), y = load_row<F>(p + v, count, S(0)), zero(S(0));
          loss.add(slot, abs(x - y));
          mean.add(slot, select(y < x, x, select(x < y, zero - x, zero)));
        },
        [&]() KD_LAMBDA {
          loss.flush();
          mean.flush();
        });
    const double more_q = sum(q, common, std::min(n, call.limit)), more_p = sum(p, common, std::min(m, call.limit));
    static_cast<S*>(call.loss)[row] = S(loss.total + more_q + more_p);
    if (!gradient) return;
    const S average = S(mean.total + more_q), rate = S(double(factor) * call.inverse_temperature_student);
    for (int64_t v = 0; v < n; ++v) {
      const S x = q[v], y = v < common ? p[v] : S(0);
      const S sign = v >= call.limit ? S(0) : x > y ? S(1) : x < y ? S(-1) : S(0);
      narrow(rate * (x * (sign - average)), gradient + columns[v]);
    }
  }

 private:
  // softmax of numbers in descending order, in two passes.
  template <class T> static void probabilities(const typename KeyOf<T>::Type* keys, int64_t n, double inverse, S* out) {
    const S top = S(widen(number_of<T>(keys[0])));
    for (int64_t v = 0; v < n; ++v) out[v] = S(widen(number_of<T>(keys[v])));
    const F shift(top), rate(S(inverse / kLnBase<S>));
    BlockSum<F> total;
    for_each_block<F>(
        n,
        [&](int64_t v, int count, int slot) KD_LAMBDA {
          const F e = power((load_row<F>(out + v, count, -std::numeric_limits<S>::infinity()) - shift) * rate);
          store_row(out + v, e, count);
          total.add(slot, e);
        },
        [&]() KD_LAMBDA { total.flush(); });
    const F scale(S(1.0 / total.total));
    for (int64_t v = 0; v < n; v += kLanes) {
      const int count = int(std::min<int64_t>(kLanes, n - v));
      store_row(out + v, load_row<F>(out + v, count, S(0)) * scale, count);
    }
  }

  static double sum(const S* x, int64_t begin, int64_t end) {
    BlockSum<F> total;
    if (begin < end) {
      for_each_block<F>(
          end - begin,
          [&](int64_t v, int count, int slot) KD_LAMBDA { total.add(slot, load_row<F>(x + begin + v, count, S(0))); },
          [&]() KD_LAMBDA { total.flush(); });
    }
    return total.total;
  }
};

KD_END
