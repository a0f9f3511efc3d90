// The CPU backend's entry points.
#pragma once

#include "rows.h"
#include "slices.h"
#include "tail_rows.h"

namespace kd {

enum class Simd : int { kScalar = 0, kAvx2 = 1, kAvx512 = 2 };

Simd best_simd();         // of this processor
Simd simd();              // in use: the best, unless limited
void limit_simd(Simd s);  // for tests; never above the best

enum class Reduction : int { kNone = 0, kSum = 1, kMean = 2 };

struct Total {
  Reduction reduction;
  const void* normalizer;  // Real, or null: kMean divides by the number of rows of non-zero weight
  void* loss;              // Real; not written for kNone, whose result is RowsCall::value
};

// All rows, on at most `threads` threads. The bits of every result are independent of the number of threads.
// Throws std::bad_alloc.
void run_rows(const RowsCall& call, const Total& total, int threads);
void run_tail(const TailCall& call, int threads);

// All rows of one pass over one slice, likewise.
void run_slice(const SliceCall& call, int threads);

}  // namespace kd
