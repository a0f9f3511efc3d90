// Feeds the product of bfloat16 factors random shapes, layouts and numbers, from buffers that end where the tensors do.
// Built with the address and undefined-behaviour sanitizers, it fails where they find something, or where a sum is not
// that of the products in double, memory between its rows is not kept, or its bits depend on the number of threads.
// Without the instructions it has nothing to feed.
//
//   fuzz_outer_product SEED CALLS
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "cpu/outer_product.h"
#include "fuzz.h"

namespace {

constexpr float kBetween = 7;  // what memory between rows holds

[[noreturn]] void fail(const char* what, const kd::OuterProduct& p, int64_t row, int64_t column) {
  std::fprintf(stderr, "%s at %lld, %lld: %lld rows, %lld columns, width %lld, gain %g, add %d\n", what,
               static_cast<long long>(row), static_cast<long long>(column), static_cast<long long>(p.rows),
               static_cast<long long>(p.columns), static_cast<long long>(p.width), double(p.gain), int(p.add));
  std::exit(1);
}

int64_t rows() {
  const int64_t edges[] = {511, 512, 513, 1024, 1025};  // of a block
  return chance(0.1) ? edges[uniform(0, 4)] : uniform(0, 40);
}

int64_t width() {
  const int64_t edges[] = {0, 1, 15, 16, 17, 31, 33, 63, 64, 65, 127, 128, 129};  // of a register, of a panel
  return chance(0.7) ? edges[uniform(0, 12)] : uniform(0, 200);
}

int64_t padded(int64_t width) { return width + (chance(0.5) ? uniform(0, 9) : 0); }

int64_t elements(int64_t rows, int64_t stride, int64_t width) { return rows ? (rows - 1) * stride + width : 0; }

// Numbers of every size a float32 sum of their products holds; NaN beside the rows.
const uint16_t* fill(Buffer* buffer, int64_t rows, int64_t stride, int64_t width, std::vector<double>* numbers) {
  const int64_t n = elements(rows, stride, width);
  void* data = buffer->allocate(n, kd::DType::kBFloat16);
  numbers->resize(size_t(n));
  const int spread = chance(0.2) ? 20 : 0;
  for (int64_t i = 0; i < n; ++i) {
    const double x = std::ldexp(std::normal_distribution<>()(g_random), int(uniform(-spread, spread)));
    put(data, kd::DType::kBFloat16, i, i % stride < width ? x : NAN);
    (*numbers)[size_t(i)] = get(data, kd::DType::kBFloat16, i);
  }
  return static_cast<const uint16_t*>(data);
}

void one_call() {
  kd::OuterProduct p{};
  p.rows = rows();
  p.columns = chance(0.1) ? uniform(120, 300) : uniform(0, 20);
  p.width = width();
  p.g_stride = padded(p.columns);
  p.x_stride = padded(p.width);
  p.sum_stride = padded(p.width);
  p.gain = chance(0.5) ? 1.0f : float(std::normal_distribution<>()(g_random));
  p.add = chance(0.5);
  Buffer g, x, sum;
  std::vector<double> g_numbers, x_numbers;
  p.g = fill(&g, p.rows, p.g_stride, p.columns, &g_numbers);
  p.x = fill(&x, p.rows, p.x_stride, p.width, &x_numbers);
  const int64_t n = elements(p.columns, p.sum_stride, p.width);
  p.sum = static_cast<float*>(sum.allocate(n, kd::DType::kFloat32));
  std::vector<float> start(static_cast<size_t>(n));
  for (int64_t i = 0; i < n; ++i)
    start[size_t(i)] = i % p.sum_stride >= p.width ? kBetween : p.add ? float(uniform(-99, 99)) : NAN;

  std::vector<float> results[2];
  for (auto& result : results) {
    std::copy(start.begin(), start.end(), p.sum);
    kd::outer_product(p, int(uniform(1, 3)));
    result.assign(p.sum, p.sum + n);
  }
  if (std::memcmp(results[0].data(), results[1].data(), size_t(n) * sizeof(float)) != 0)
    fail("bits from run to run", p, 0, 0);

  for (int64_t i = 0; i < n; ++i) {
    const int64_t c = i / p.sum_stride, h = i % p.sum_stride;
    const double actual = results[0][size_t(i)];
    if (h >= p.width) {
      if (actual != kBetween) fail("memory between rows", p, c, h);
      continue;
    }
    double expected = p.add ? double(start[size_t(i)]) : 0, terms = std::abs(expected);
    for (int64_t row = 0; row < p.rows; ++row) {
      const double term = p.gain * g_numbers[size_t(row * p.g_stride + c)] * x_numbers[size_t(row * p.x_stride + h)];
      expected += term;
      terms += std::abs(term);
    }
    // As many roundings of a partial sum, each no larger than the sum of all terms.
    const double allowed = double(p.rows + 2) * 6e-8 * terms + 1e-30;
    if (!(std::abs(actual - expected) <= allowed)) fail("sum", p, c, h);
  }
}

}  // namespace

int main(int argc, char** argv) {
  g_random.seed(argc > 1 ? std::strtoull(argv[1], nullptr, 10) : 0);
  const int64_t calls = argc > 2 ? std::strtoll(argv[2], nullptr, 10) : 1000;
  for (int64_t i = 0; kd::has_outer_product() && i < calls; ++i) one_call();
  std::printf("%lld calls\n", static_cast<long long>(calls));
}
