// AKL's split of the vocabulary by the teacher (arXiv 2404.02657): entries in descending order of p, ties in order of
// index; the head is what comes before the running mass exceeds mu, and always the first. Only the entry where that
// happens is needed, and it is found by weighted selection: quickselect with masses for counts. O(V), where sorting the
// vocabulary is O(V log V).
#pragma once

#include "row_sweeps.h"

KD_BEGIN

template <class S> struct Crossing {
  S value;         // of the entry at which the running mass first exceeds the target
  int64_t before;  // entries of that value that come before it
  bool first;      // no entry is larger and none comes before
};

template <class S> S median_of_three(S a, S b, S c) { return max(min(a, b), min(max(a, b), c)); }

template <class S> S median_of_nine(const S* x, int64_t n) {
  S m[3];
  for (int i = 0; i < 3; ++i) {
    const int64_t at = n * i / 3, third = n / 9;
    m[i] = median_of_three(x[at], x[at + third], x[at + 2 * third]);
  }
  return median_of_three(m[0], m[1], m[2]);
}

// e[n] >= 0 sums to total > target >= 0. `larger` and `smaller` have room for n values and a register more.
template <class F, class S = ScalarOf<F>>
Crossing<S> find_crossing(const S* e, int64_t n, double total, double target, S* larger, S* smaller) {
  const F zero(S(0));
  double above = 0;  // mass of the entries larger than every candidate
  const S* candidates = e;
  // Entries this small weigh less than total - target together: the crossing is above them.
  S pivot = static_cast<S>(0.999 * (total - target) / static_cast<double>(n));
  for (;; pivot = median_of_nine(candidates, n)) {
    const F p(pivot);
    BlockSum<F> mass_larger, mass_equal;
    int64_t n_larger = 0, n_smaller = 0, n_equal = 0;
    // Candidates may lie in either buffer: both are filled from the front, never past the entry being read.
    for_each_block<F>(
        n,
        [&](int64_t i, int count, int slot) KD_LAMBDA {
          const F x = load_row<F>(candidates + i, count, NAN);  // NAN: neither larger nor smaller nor equal
          const auto is_larger = x > p, is_equal = x == p;
          mass_larger.add(slot, select(is_larger, x, zero));
          mass_equal.add(slot, select(is_equal, x, zero));
          n_equal += __builtin_popcount(mask_bits(is_equal));
          n_larger += Lanes<F>::compress(larger + n_larger, is_larger, x);
          n_smaller += Lanes<F>::compress(smaller + n_smaller, x < p, x);
        },
        [&]() KD_LAMBDA {
          mass_larger.flush();
          mass_equal.flush();
        });
    if (n_larger > 0 && above + mass_larger.total > target) {
      candidates = larger;
      n = n_larger;
      continue;
    }
    above += mass_larger.total;
    if (n_equal > 0 && (above + mass_equal.total > target || n_smaller == 0)) {
      const double whole = std::floor((target - above) / double(pivot));
      const int64_t before = whole < 0 ? 0 : whole < double(n_equal) ? static_cast<int64_t>(whole) : n_equal - 1;
      return {pivot, before, above == 0 && before == 0};
    }
    above += mass_equal.total;
    candidates = smaller;
    n = n_smaller;
  }
}

struct HeadTail {
  double head, tail;
};

// sum |p - q| over the head and over the tail.
template <class F, class S = ScalarOf<F>>
HeadTail gaps(const S* es, const S* et, int64_t n, S inverse_s, S inverse_t, const Crossing<S>& crossing) {
  constexpr int kLanes = Traits<F>::kLanes;
  const F inv_s(inverse_s), inv_t(inverse_t), v(crossing.value), zero(S(0));
  BlockSum<F> all, larger;
  double ties = 0;
  int64_t left = crossing.first ? 1 : crossing.before;
  for_each_block<F>(
      n,
      [&](int64_t i, int count, int slot) KD_LAMBDA {
        const F t = load_row<F>(et + i, count, 0.0f), s = load_row<F>(es + i, count, 0.0f);
        const F gap = abs(t * inv_t - s * inv_s);
        all.add(slot, gap);
        larger.add(slot, select(t > v, gap, zero));
        uint32_t equal = mask_bits(t == v);
        if (equal != 0 && left > 0) {
          S lanes[kLanes];
          Lanes<F>::store(lanes, gap);
          for (; equal != 0 && left > 0; equal &= equal - 1, --left) ties += lanes[__builtin_ctz(equal)];
        }
      },
      [&]() KD_LAMBDA {
        all.flush();
        larger.flush();
      });
  const double head = larger.total + ties;
  return {head, all.total - head > 0 ? all.total - head : 0};
}

KD_END
