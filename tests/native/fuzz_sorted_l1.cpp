// Feeds the distance of sorted distributions random sizes, layouts, types and hostile numbers, from buffers that end
// where the tensors do. Built with the address and undefined-behaviour sanitizers, it fails where they find something,
// where an output is not written, or where a row of numbers is not what a stable sort and sums in double make of it.
//
//   fuzz_sorted_l1 SEED CALLS
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <numeric>
#include <vector>

#include "cpu/driver.h"
#include "cpu/transport.h"
#include "fuzz.h"

namespace {

using Vector = std::vector<double>;

[[noreturn]] void fail(const char* what, const kd::SortedCall& call, int64_t row) {
  std::fprintf(stderr, "%s: row %lld of %lld, %lld and %lld columns, limit %lld, 1 / T %g %g, dtypes %d %d, simd %d\n",
               what, static_cast<long long>(row), static_cast<long long>(call.rows),
               static_cast<long long>(call.student_columns), static_cast<long long>(call.teacher_columns),
               static_cast<long long>(call.limit), call.inverse_temperature_student, call.inverse_temperature_teacher,
               int(call.student.dtype), int(call.teacher.dtype), int(kd::simd()));
  std::exit(1);
}

// How a row is filled. With a NaN nothing need be a number.
enum class Content { kOrdinary, kTies, kHuge, kForbidden, kNan };

double entry(Content content) {
  const double ordinary = std::normal_distribution<>(0, 3)(g_random);
  switch (content) {
    case Content::kTies: {
      const double pool[] = {0.0, -0.0, 0.5, 1.0, -1.0};
      return pool[uniform(0, 4)];
    }
    case Content::kHuge: {
      const double pool[] = {0.0, -0.0, 1e4, -1e4, 6e4, -6e4, 1e-40, 5e-8, ordinary};
      return pool[uniform(0, 8)];
    }
    case Content::kForbidden: return chance(0.3) ? -INFINITY : ordinary;
    default: return ordinary;
  }
}

struct Side {
  int64_t columns;
  kd::Matrix matrix;
  Tensor tensor;
  std::vector<Vector> rows;

  Side(int64_t rows, int64_t columns, kd::DType dtype)
      : columns(columns),
        matrix{nullptr, columns + (chance(0.5) ? uniform(0, 9) : 0), dtype},
        tensor(rows ? (rows - 1) * matrix.row_stride + columns : 0, dtype) {
    matrix.data = tensor.data;
  }
  void fill(int64_t row, Content content) {
    Vector z;
    for (int64_t v = 0; v < columns; ++v)
      z.push_back(tensor.set(row * matrix.row_stride + v, v == columns / 2 ? 0.25 : entry(content)));
    if (content == Content::kNan)
      tensor.set(row * matrix.row_stride + uniform(0, columns - 1), chance(0.5) ? NAN : INFINITY);
    rows.push_back(z);
  }
};

// A row's entries in descending order, and where they were.
struct Sorted {
  std::vector<size_t> order;
  Vector share;

  Sorted(const Vector& z, double rate) : order(z.size()) {
    std::iota(order.begin(), order.end(), size_t{0});
    std::stable_sort(order.begin(), order.end(), [&](size_t i, size_t j) { return z[i] > z[j]; });
    double sum = 0;
    for (size_t i : order) share.push_back(std::exp((z[i] - z[order[0]]) * rate));
    for (double x : share) sum += x;
    for (double& x : share) x /= sum;
  }
  double at(int64_t rank, int64_t limit) const {
    return rank < limit && rank < int64_t(share.size()) ? share[size_t(rank)] : 0;
  }
};

void check(const kd::SortedCall& call, int64_t row, const Vector& zs, const Vector& zt, double factor, double loss,
           const Tensor* gradient) {
  const bool wide = call.student.dtype == kd::DType::kFloat64;
  const double rate = wide ? 1e-12 : 2e-6;
  const Sorted q(zs, call.inverse_temperature_student), p(zt, call.inverse_temperature_teacher);
  const int64_t n = call.student_columns, ranks = std::max(n, call.teacher_columns);
  // The share of a low logit is a power of a large number. Where both sides are as good as equal the sign may be
  // either, and so much of the mean is not known.
  const auto error = [&](double x) { return x > 0 ? rate * x * (4 - std::log(x)) : 0; };
  const auto tied = [&](double x, double y) { return std::abs(x - y) <= error(x) + error(y); };
  const auto sign = [&](double x, double y) { return tied(x, y) ? 0 : x > y ? 1 : -1; };
  double expected = 0, mean = 0, unknown = 0;
  for (int64_t k = 0; k < ranks; ++k) {
    const double x = q.at(k, call.limit), y = p.at(k, call.limit);
    expected += std::abs(x - y);
    mean += x * sign(x, y);
    unknown += tied(x, y) ? x : 0;
  }
  if (!(std::abs(loss - expected) <= 2 * rate)) fail("loss", call, row);
  for (int64_t k = 0; gradient && k < n; ++k) {
    const double x = q.share[size_t(k)], y = p.at(k, call.limit), scale = factor * call.inverse_temperature_student;
    const double wanted = scale * x * ((k < call.limit ? sign(x, y) : 0) - mean);
    const double either = k < call.limit && tied(x, y) ? x : 0;
    const double allowed = std::abs(scale) * (2 * error(x) + x * (unknown + 4 * rate) + either) + 1e-30;
    const double actual = (*gradient)[row * n + int64_t(q.order[size_t(k)])];
    if (!(std::abs(actual - wanted) <= allowed + rounding(wanted, gradient->dtype))) fail("gradient", call, row);
  }
}

void one_call() {
  kd::SortedCall call{};
  call.rows = uniform(0, 4);
  const auto width = [] { return chance(0.9) ? uniform(1, 100) : columns(); };
  call.student_columns = width();
  call.teacher_columns = chance(0.5) ? call.student_columns : width();
  const int64_t ranks = std::max(call.student_columns, call.teacher_columns);
  call.limit = chance(0.5) ? ranks : uniform(1, ranks);
  const bool wide = chance(0.2);
  const auto half_or_single = [] { return static_cast<kd::DType>(uniform(0, 2)); };
  const kd::DType student_dtype = wide ? kd::DType::kFloat64 : half_or_single();
  const kd::DType teacher_dtype = wide ? kd::DType::kFloat64 : chance(0.5) ? student_dtype : half_or_single();
  const kd::DType real = real_of(student_dtype);
  Side student(call.rows, call.student_columns, student_dtype), teacher(call.rows, call.teacher_columns, teacher_dtype);
  std::vector<Content> contents;
  for (int64_t i = 0; i < call.rows; ++i) {
    contents.push_back(static_cast<Content>(uniform(0, 4)));
    student.fill(i, contents.back());
    teacher.fill(i, contents.back() == Content::kNan ? Content::kOrdinary : contents.back());
  }
  call.student = student.matrix;
  call.teacher = teacher.matrix;
  call.inverse_temperature_student = chance(0.5) ? 1.0 : std::exp(std::normal_distribution<>(0, 0.7)(g_random));
  call.inverse_temperature_teacher = chance(0.5) ? 1.0 : std::exp(std::normal_distribution<>(0, 0.7)(g_random));
  Tensor factor(call.rows, real), loss(call.rows, real), gradient(call.rows * call.student_columns, student_dtype);
  for (int64_t i = 0; i < call.rows; ++i) factor.set(i, chance(0.2) ? 0 : std::normal_distribution<>()(g_random));
  const bool with_factor = chance(0.5), with_gradient = chance(0.7);
  call.factor = factor.if_wanted(with_factor);
  call.loss = loss.data;
  call.gradient = gradient.if_wanted(with_gradient);
  kd::limit_simd(static_cast<kd::Simd>(uniform(0, 2)));
  on_threads(kd::run_sorted_l1, call);

  for (int64_t i = 0; i < call.rows; ++i) {
    const double share = with_factor ? factor[i] : 1;
    if (share == 0) {
      if (loss[i] != 0) fail("loss of a row that does not count", call, i);
      for (int64_t v = 0; with_gradient && v < call.student_columns; ++v)
        if (gradient[i * call.student_columns + v] != 0) fail("gradient of a row that does not count", call, i);
    } else if (contents[size_t(i)] == Content::kNan) {
      if (!std::isnan(loss[i])) fail("loss of NaN logits", call, i);
    } else {
      check(call, i, student.rows[size_t(i)], teacher.rows[size_t(i)], share, loss[i],
            with_gradient ? &gradient : nullptr);
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  g_random.seed(argc > 1 ? std::strtoull(argv[1], nullptr, 10) : 0);
  const int64_t calls = argc > 2 ? std::strtoll(argv[2], nullptr, 10) : 1000;
  for (int64_t i = 0; i < calls; ++i) one_call();
  std::printf("%lld calls\n", static_cast<long long>(calls));
}
