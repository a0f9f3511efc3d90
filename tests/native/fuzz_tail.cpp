// Feeds the sweeps over a row's tail random shapes, lists, layouts, types and hostile numbers, from buffers that end
// where the tensors do. Built with the address and undefined-behaviour sanitizers, it fails where they find something,
// or where a row breaks a promise: rows of weight 0 give exactly 0, listed entries are as given, the gradient over the
// tail sums up to its factor, numbers give no NaN, memory between rows is kept.
//
//   fuzz_tail SEED CALLS
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <memory>
#include <numeric>
#include <vector>

#include "cpu/driver.h"
#include "fuzz.h"

namespace {

[[noreturn]] void fail(const char* what, const kd::TailCall& call, int64_t row) {
  std::fprintf(stderr, "%s: row %lld of %lld, %lld columns, %lld slots, dtype %d, simd %d\n", what,
               static_cast<long long>(row), static_cast<long long>(call.rows), static_cast<long long>(call.columns),
               static_cast<long long>(call.slots), int(call.logits.dtype), int(kd::simd()));
  std::exit(1);
}

// How a row is filled. Of finite rows everything is a number; with a NaN in them nothing need be.
enum class Content { kOrdinary, kHuge, kForbidden, kNan };

double entry(Content content) {
  const double ordinary = std::normal_distribution<>(0, 3)(g_random);
  switch (content) {
    case Content::kHuge: {
      const double pool[] = {0.0, -0.0, 1e4, -1e4, 6e4, -6e4, 1e-40, 5e-8, ordinary};
      return pool[uniform(0, 8)];
    }
    case Content::kForbidden: return chance(0.5) ? -INFINITY : ordinary;
    case Content::kNan: return chance(0.1) ? (chance(0.5) ? NAN : INFINITY) : ordinary;
    default: return ordinary;
  }
}

// Distinct entries in any order, and empty slots among them.
void list(int64_t columns, int64_t slots, int64_t* ids) {
  std::vector<int64_t> order(static_cast<size_t>(columns));
  std::iota(order.begin(), order.end(), 0);
  std::shuffle(order.begin(), order.end(), g_random);
  const int64_t empty[] = {-1, columns, std::numeric_limits<int64_t>::min(), std::numeric_limits<int64_t>::max()};
  for (int64_t k = 0; k < slots; ++k) ids[k] = k < columns && chance(0.9) ? order[size_t(k)] : empty[uniform(0, 3)];
}

void one_call() {
  kd::TailCall call{};
  call.rows = uniform(0, 6);
  call.columns = columns();
  call.width = call.columns + (chance(0.3) ? uniform(1, 70) : 0);
  call.slots = chance(0.2) ? call.columns : uniform(0, std::min<int64_t>(call.columns + 3, 80));
  const auto dtype = static_cast<kd::DType>(uniform(0, 3));
  const kd::DType real = dtype == kd::DType::kFloat64 ? kd::DType::kFloat64 : kd::DType::kFloat32;
  call.logits = {nullptr, call.width + (chance(0.5) ? uniform(0, 9) : 0), dtype};
  const auto elements = [&](int64_t stride) { return call.rows ? (call.rows - 1) * stride + call.width : 0; };
  Buffer logits, gradient, weight, tail, entries, factor;
  call.logits.data = logits.allocate(elements(call.logits.row_stride), dtype);
  std::vector<Content> contents;
  for (int64_t i = 0; i < call.rows; ++i) {
    contents.push_back(static_cast<Content>(uniform(0, 3)));
    const double shift = contents.back() == Content::kOrdinary && chance(0.3) ? 1e4 : 0;
    for (int64_t j = 0; j < call.width; ++j)
      put(call.logits.data, dtype, i * call.logits.row_stride + j,
          j < call.columns ? entry(contents.back()) + shift : NAN);
  }
  const std::unique_ptr<int64_t[]> ids(new int64_t[size_t(call.rows * call.slots)]);
  for (int64_t i = 0; i < call.rows; ++i) list(call.columns, call.slots, ids.get() + i * call.slots);
  call.ids = ids.get();
  std::vector<bool> counts(size_t(call.rows), true);
  if (chance(0.5)) {
    void* w = weight.allocate(call.rows, real);
    for (int64_t i = 0; i < call.rows; ++i) {
      counts[size_t(i)] = chance(0.7);
      put(w, real, i, counts[size_t(i)] ? 0.5 : 0.0);
    }
    call.weight = w;
  }
  call.tail = tail.allocate(call.rows, real);
  call.inverse_temperature = chance(0.5) ? 1.0 : std::exp(std::normal_distribution<>()(g_random));
  kd::limit_simd(static_cast<kd::Simd>(uniform(0, 2)));
  kd::run_tail(call, int(uniform(1, 3)));

  for (int64_t i = 0; i < call.rows; ++i) {
    const double t = get(call.tail, real, i);
    if (!counts[size_t(i)] && t != 0) fail("tail of a row of weight 0", call, i);
    if (contents[size_t(i)] != Content::kNan && (std::isnan(t) || t == INFINITY)) fail("tail", call, i);
  }

  call.gradient = {nullptr, call.width + uniform(0, 9), dtype};
  if (chance(0.4)) {
    call.gradient = call.logits;
  } else {
    call.gradient.data = gradient.allocate(elements(call.gradient.row_stride), dtype);
  }
  // Numbers of few bits, which every type holds.
  const auto number = [] { return double(uniform(-8, 8)) / 4; };
  void* e = entries.allocate(call.rows * call.slots, real);
  void* f = factor.allocate(call.rows, real);
  for (int64_t i = 0; i < call.rows * call.slots; ++i) put(e, real, i, number());
  for (int64_t i = 0; i < call.rows; ++i) put(f, real, i, number());
  call.entries = e;
  call.tail_factor = f;
  for (int64_t i = 0; i + 1 < call.rows; ++i)
    for (int64_t j = call.width; j < call.gradient.row_stride; ++j)
      put(call.gradient.data, dtype, i * call.gradient.row_stride + j, 7);
  kd::run_tail(call, int(uniform(1, 3)));

  for (int64_t i = 0; i < call.rows; ++i) {
    const auto at = [&](int64_t j) { return get(call.gradient.data, dtype, i * call.gradient.row_stride + j); };
    std::vector<bool> listed(size_t(call.columns), false);
    for (int64_t k = 0; k < call.slots; ++k) {
      const int64_t id = call.ids[i * call.slots + k];
      if (id < 0 || id >= call.columns) continue;
      listed[size_t(id)] = true;
      if (at(id) != (counts[size_t(i)] ? get(e, real, i * call.slots + k) : 0)) fail("listed entry", call, i);
    }
    double sum = 0;
    for (int64_t j = 0; j < call.columns; ++j) sum += listed[size_t(j)] ? 0 : at(j);
    for (int64_t j = call.columns; j < call.width; ++j)
      if (at(j) != 0) fail("gradient where nothing counts", call, i);
    for (int64_t j = call.width; i + 1 < call.rows && j < call.gradient.row_stride; ++j)
      if (at(j) != 7) fail("memory between rows", call, i);
    const bool nothing = !counts[size_t(i)] || get(call.tail, real, i) == -INFINITY;
    const double expected = nothing ? 0 : get(f, real, i);
    // The rounding of an entry in bfloat16, and of the tail in float, both twice over.
    const double allowed = 0.01 + (nothing ? 0 : std::abs(get(call.tail, real, i)) * 2.4e-7);
    if ((nothing || contents[size_t(i)] == Content::kOrdinary) && !(std::abs(sum - expected) <= allowed))
      fail("sum of the gradient", call, i);
  }
}

}  // namespace

int main(int argc, char** argv) {
  g_random.seed(argc > 1 ? std::strtoull(argv[1], nullptr, 10) : 0);
  const int64_t calls = argc > 2 ? std::strtoll(argv[2], nullptr, 10) : 1000;
  for (int64_t i = 0; i < calls; ++i) one_call();
  std::printf("%lld calls\n", static_cast<long long>(calls));
}
