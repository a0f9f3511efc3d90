// Two sweeps over one row that has a list of entries; the others are its tail.
//
//   tail logit      log sum exp(z / T) over the tail
//   tail gradient   factor exp(z / T - tail) in the tail, given numbers in the list
//
// The sum is over the tail alone: as a difference of two sums over the row it would be lost where the list holds nearly
// all of the mass.
#pragma once

#include <type_traits>

#include "row_sweeps.h"
#include "tail_rows.h"

KD_BEGIN

// Exponentials above 2^24 of an offset carry its rounding and that of their argument: more than an epsilon or two.
constexpr double kHighestSum = 16777216;

struct Listed {  // a bit for each column
  uint8_t* bits;

  void set(const int64_t* ids, int64_t slots, int64_t columns) const {
    std::memset(bits, 0, tail_scratch_bytes(columns));
    for (int64_t k = 0; k < slots; ++k) {
      if (ids[k] >= 0 && ids[k] < columns) bits[ids[k] >> 3] |= static_cast<uint8_t>(1u << (ids[k] & 7));
    }
  }

  template <class F> KD_HD auto lanes(int64_t i) const {  // i: a multiple of the lanes
    std::conditional_t<(Traits<F>::kLanes > 8), uint16_t, uint8_t> word;
    std::memcpy(&word, bits + (i >> 3), sizeof word);
    return Lanes<F>::mask_of(static_cast<uint32_t>(word) >> (i & 7));
  }
};

template <class F, class T> ScalarOf<F> tail_max(const T* z, int64_t n, const Listed& listed) {
  const F lowest(ScalarOf<F>(-INFINITY));
  F m = lowest;
  for_each_block<F>(
      n,
      [&](int64_t i, int count, int)
          KD_LAMBDA { m = max(select(listed.lanes<F>(i), lowest, load_row<F>(z + i, count, -INFINITY)), m); },
      []() KD_LAMBDA {});
  return reduce_max(m);
}

// sum base^((z - top) rate)
template <class F, class T, class S = ScalarOf<F>>
double tail_sum(const T* z, int64_t n, const Listed& listed, S top, S rate) {
  BlockSum<F> sum;
  const F shift(top), k(rate), zero(S(0));
  for_each_block<F>(
      n,
      [&](int64_t i, int count, int slot) KD_LAMBDA {
        __builtin_prefetch(z + i + kPrefetch);
        const F e = power((load_row<F>(z + i, count, -INFINITY) - shift) * k);
        sum.add(slot, select(listed.lanes<F>(i), zero, e));
      },
      [&]() KD_LAMBDA { sum.flush(); });
  return sum.total;
}

// The exponentials are of differences to the tail's largest logit in the first block; where that says little about the
// sum, to its true maximum. -inf for a tail of nothing, NaN where an entry of the tail is NaN or +inf.
template <class F, class T, class S = ScalarOf<F>>
double tail_logit(const T* z, int64_t n, const Listed& listed, double inverse_temperature) {
  const S rate = static_cast<S>(inverse_temperature / kLnBase<S>);
  const auto height = [](S top) { return top > -INFINITY ? top : S(0); };
  S top = height(tail_max<F>(z, n < kBlock<F> ? n : kBlock<F>, listed));
  double sum = tail_sum<F>(z, n, listed, top, rate);
  if (!(sum >= 0.5 && sum < kHighestSum)) {
    top = height(tail_max<F>(z, n, listed));
    sum = tail_sum<F>(z, n, listed, top, rate);
  }
  return double(top) * inverse_temperature + std::log(sum);
}

// gradient = factor exp(z / T - tail). The difference is taken between logits, near T tail and before any product:
// heights far from 0 cost it nothing.
template <class F, class T, class S = ScalarOf<F>>
void tail_gradient(const T* z, int64_t n, S tail, S factor, double inverse_temperature, T* gradient) {
  const S centre = static_cast<S>(tail / inverse_temperature);
  const double remainder = std::fma(double(centre), inverse_temperature, -double(tail));
  const F shift(centre), rate(static_cast<S>(inverse_temperature / kLnBase<S>));
  const F offset(static_cast<S>(remainder / kLnBase<S>)), scale(factor);
  for_each_block<F>(
      n,
      [&](int64_t i, int count, int) KD_LAMBDA {
        __builtin_prefetch(z + i + kPrefetch);
        const F x = load_row<F>(z + i, count, 0.0f) - shift;
        store_row(gradient + i, power(fma(x, rate, offset)) * scale, count);
      },
      []() KD_LAMBDA {});
}

// The whole of one row's work for a dtype.
template <class F, class T> void run_tail_row(const TailCall& call, int64_t row, void* scratch) {
  using S = ScalarOf<F>;
  const bool counts = call.weight == nullptr || static_cast<const S*>(call.weight)[row] != 0;
  const T* z = static_cast<const T*>(call.logits.data) + row * call.logits.row_stride;
  const int64_t* ids = call.ids + row * call.slots;
  S* tail = static_cast<S*>(call.tail) + row;
  if (call.gradient.data == nullptr) {
    *tail = S(0);
    if (!counts) return;  // not read: it may hold anything
    const Listed listed{static_cast<uint8_t*>(scratch)};
    listed.set(ids, call.slots, call.columns);
    *tail = static_cast<S>(tail_logit<F>(z, call.columns, listed, call.inverse_temperature));
    return;
  }

  T* gradient = static_cast<T*>(call.gradient.data) + row * call.gradient.row_stride;
  const S factor = static_cast<const S*>(call.tail_factor)[row];
  const bool has_tail = counts && factor != 0 && *tail != -INFINITY;
  if (has_tail) tail_gradient<F>(z, call.columns, *tail, factor, call.inverse_temperature, gradient);
  const int64_t written = has_tail ? call.columns : 0;
  std::memset(static_cast<void*>(gradient + written), 0, sizeof(T) * size_t(call.width - written));
  const S* entries = static_cast<const S*>(call.entries) + row * call.slots;
  for (int64_t k = 0; counts && k < call.slots; ++k) {
    // The sweep has read these logits by now, which the gradient may overwrite.
    if (ids[k] >= 0 && ids[k] < call.columns) narrow(entries[k], gradient + ids[k]);
  }
}

template <class F> TailFunction tail_function(DType dtype) {
  switch (dtype) {
    case DType::kFloat32: return run_tail_row<F, float>;
    case DType::kBFloat16: return run_tail_row<F, BFloat16>;
    case DType::kFloat16: return run_tail_row<F, Half>;
    default: return nullptr;
  }
}

KD_END
