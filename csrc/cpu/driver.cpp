#include "driver.h"

#include <atomic>
#include <vector>

#include "parallel.h"

namespace kd {
namespace {

Simd detect_simd() {
#if defined(KD_X86)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (avx512) return Simd::kAvx512;
  if (avx2) return Simd::kAvx2;
#endif
  return Simd::kScalar;
}

std::atomic<Simd> g_limit{Simd::kAvx512};

RowFunction row_function(DType student, DType teacher) {
#if defined(KD_X86)
  if (student != DType::kFloat64) {
    if (simd() == Simd::kAvx512) return row_function_avx512(student, teacher);
    if (simd() == Simd::kAvx2) return row_function_avx2(student, teacher);
  }
#endif
  return row_function_scalar(student, teacher);
}

TailFunction tail_function(DType dtype) {
#if defined(KD_X86)
  if (dtype != DType::kFloat64) {
    if (simd() == Simd::kAvx512) return tail_function_avx512(dtype);
    if (simd() == Simd::kAvx2) return tail_function_avx2(dtype);
  }
#endif
  return tail_function_scalar(dtype);
}

SliceFunction slice_function(DType student, DType teacher) {
#if defined(KD_X86)
  if (student != DType::kFloat64) {
    if (simd() == Simd::kAvx512) return slice_function_avx512(student, teacher);
    if (simd() == Simd::kAvx2) return slice_function_avx2(student, teacher);
  }
#endif
  return slice_function_scalar(student, teacher);
}

// Calls body(row, scratch) for each row, on at most `threads` threads.
template <class Body>
void for_each_row(int64_t rows, int64_t columns, int threads, size_t scratch_bytes, const Body& body) {
  const int team = team_for(rows, double(rows) * double(columns), threads);
  // Rows differ in cost (masked ones are free); runs of a few rows keep a thread on its own pages.
  for_each_item(rows, team, rows / (team * 16) + 1, scratch_bytes, body);
}

template <class Real> double weight_of(const RowsCall& call, int64_t row) {
  return call.weight ? double(static_cast<const Real*>(call.weight)[row]) : 1.0;
}

template <class Real> double divisor_of(const RowsCall& call, const Total& total) {
  if (total.normalizer) return double(*static_cast<const Real*>(total.normalizer));
  if (total.reduction != Reduction::kMean) return 1.0;
  int64_t counted = call.weight ? 0 : call.rows;
  if (call.weight)
    for (int64_t i = 0; i < call.rows; ++i) counted += weight_of<Real>(call, i) != 0;
  return counted > 0 ? double(counted) : 1.0;
}

// row(i, scratch) for every row, on at most `threads` threads.
template <class Real> void run(RowsCall call, const Total& total, int threads) {
  std::vector<Real> values;
  if (!call.value) {
    values.resize(size_t(call.rows));
    call.value = values.data();
  }
  const RowFunction row = row_function(call.student.dtype, call.teacher.dtype);
  const double divisor = divisor_of<Real>(call, total);
  const size_t scratch_bytes = sizeof(Real) * size_t(kScratchRows * scratch_row(call.columns));
  for_each_row(call.rows, call.columns, threads, scratch_bytes,
               [&](int64_t i, void* scratch) { row(call, i, 1.0 / divisor, scratch); });

  if (total.reduction == Reduction::kNone) return;
  double sum = 0;
  for (int64_t i = 0; i < call.rows; ++i) sum += double(static_cast<const Real*>(call.value)[i]);
  *static_cast<Real*>(total.loss) = static_cast<Real>(sum / divisor);
}

}  // namespace

Simd best_simd() {
  static const Simd best = detect_simd();
  return best;
}

Simd simd() {
  const Simd limit = g_limit.load(std::memory_order_relaxed);
  return limit < best_simd() ? limit : best_simd();
}

void limit_simd(Simd s) { g_limit.store(s, std::memory_order_relaxed); }

void run_rows(const RowsCall& call, const Total& total, int threads) {
  if (call.student.dtype == DType::kFloat64) {
    run<double>(call, total, threads);
  } else {
    run<float>(call, total, threads);
  }
}

void run_tail(const TailCall& call, int threads) {
  const TailFunction row = tail_function(call.logits.dtype);
  for_each_row(call.rows, call.columns, threads, tail_scratch_bytes(call.columns),
               [&](int64_t i, void* scratch) { row(call, i, scratch); });
}

void run_slice(const SliceCall& call, int threads) {
  const SliceFunction row = slice_function(call.student.dtype, call.teacher.dtype);
  const auto run_row = [&](int64_t i, void* scratch) { row(call, i, scratch); };
  const size_t item = call.student.dtype == DType::kFloat64 ? sizeof(double) : sizeof(float);
  for_each_row(call.rows, call.columns, threads, item * size_t(kScratchRows * scratch_row(call.columns)), run_row);
}

}  // namespace kd
