// Feeds L1 costs and their gradient random sizes, layouts, masks, types and hostile numbers, from buffers that end
// where the tensors do. Built with the address and undefined-behaviour sanitizers, it fails where they find something,
// where an output is not written, or where rows of numbers are not what sums in double make of them.
//
//   fuzz_l1_cost SEED CALLS
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "cpu/driver.h"
#include "cpu/transport.h"
#include "fuzz.h"

// Memory from the heap, scratch among it, is NaN until it is written.
extern "C" const char* __asan_default_options() { return "max_malloc_fill_size=1073741824:malloc_fill_byte=255"; }

namespace {

using Vector = std::vector<double>;

[[noreturn]] void fail(const char* what, const kd::L1Call& call, int64_t problem, int64_t row) {
  std::fprintf(stderr,
               "%s: row %lld of problem %lld of %lld, %lld rows, %lld others, %lld columns, softmax %d, 1 / T %g %g, "
               "dtypes %d %d, simd %d\n",
               what, static_cast<long long>(row), static_cast<long long>(problem),
               static_cast<long long>(call.problems), static_cast<long long>(call.rows),
               static_cast<long long>(call.others), static_cast<long long>(call.columns), int(call.softmax),
               call.inverse_temperature_student, call.inverse_temperature_teacher, int(call.student.first.dtype),
               int(call.teacher.first.dtype), int(kd::simd()));
  std::exit(1);
}

// How rows are filled: ties are numbers of few bits. With a NaN nothing need be a number.
enum class Content { kOrdinary, kTies, kForbidden, kNan };

double entry(Content content) {
  const double ordinary = std::normal_distribution<>(0, 3)(g_random);
  if (content == Content::kTies) return double(uniform(-2, 2)) / 4;
  return content == Content::kForbidden && chance(0.3) ? -INFINITY : ordinary;
}

// The rows of one side, and the numbers they stand for: empty where a mask hides one.
struct Side {
  int64_t problems, rows, columns;
  kd::Batch batch;
  Tensor tensor, mask;
  bool masked = chance(0.4);
  std::vector<Vector> shares;
  std::vector<bool> spoilt;

  // `width` entries a row, of which `columns` count.
  Side(int64_t problems, int64_t rows, int64_t columns, int64_t width, kd::DType dtype)
      : problems(problems),
        rows(rows),
        columns(columns),
        batch(layout(rows, width, dtype)),
        tensor(problems && rows ? (problems - 1) * batch.stride + (rows - 1) * batch.first.row_stride + width : 0,
               dtype),
        mask((problems * rows + 7) / 8, kd::DType::kFloat64) {
    batch.first.data = tensor.data;
  }
  static kd::Batch layout(int64_t rows, int64_t width, kd::DType dtype) {
    const int64_t row_stride = width + (chance(0.5) ? uniform(0, 9) : 0);
    return {{nullptr, row_stride, dtype}, rows * row_stride + (chance(0.5) ? uniform(0, 9) : 0)};
  }
  uint8_t* flags() { return static_cast<uint8_t*>(mask.data); }

  void fill(Content content, bool softmax, double rate) {
    for (int64_t r = 0; r < problems * rows; ++r) {
      flags()[r] = masked && chance(0.3) ? 0 : 1;
      spoilt.push_back(false);
      shares.emplace_back();
      if (!flags()[r]) continue;
      Vector& z = shares.back();
      const int64_t at = r / rows * batch.stride + r % rows * batch.first.row_stride;
      for (int64_t v = 0; v < columns; ++v) z.push_back(tensor.set(at + v, v == 0 ? 0.25 : entry(content)));
      if (content == Content::kNan && chance(0.5)) {
        tensor.set(at + uniform(0, columns - 1), NAN);
        spoilt.back() = true;
      }
      if (!softmax) continue;
      const double top = *std::max_element(z.begin(), z.end());
      double sum = 0;
      for (double& x : z) sum += x = std::exp((x - top) * rate);
      for (double& x : z) x /= sum;
    }
  }
  const uint8_t* flags_if_masked() { return masked ? flags() : nullptr; }
};

// A share, which of a low logit is the power of a large number, or a number as it is.
double error(double x, double rate, bool softmax) { return softmax && x > 0 ? rate * x * (4 - std::log(x)) : 0; }

void check_cost(const kd::L1Call& call, int64_t b, int64_t i, const Side& student, const Side& teacher,
                const Tensor& cost, double rate) {
  const Vector& q = student.shares[size_t(b * call.rows + i)];
  for (int64_t j = 0; j < call.others; ++j) {
    const size_t at = size_t(b * call.others + j);
    const Vector& p = teacher.shares[at];
    double expected = 0, size = 0;
    for (size_t v = 0; !q.empty() && v < p.size(); ++v) {
      expected += std::abs(q[v] - p[v]);
      size += std::abs(q[v]) + std::abs(p[v]);
    }
    const double actual = cost[(b * call.rows + i) * call.others + j];
    if (size > 0 && (student.spoilt[size_t(b * call.rows + i)] || teacher.spoilt[at])) {
      if (!std::isnan(actual)) fail("cost of NaN", call, b, i);
    } else if (!(std::abs(actual - expected) <= 4 * rate * size)) {
      fail("cost", call, b, i);
    }
  }
}

void check_gradient(const kd::L1Call& call, int64_t b, int64_t i, const Side& student, const Side& teacher,
                    const Tensor& upstream, const Tensor& gradient, double rate) {
  const Vector& q = student.shares[size_t(b * call.rows + i)];
  // In front of a softmax the sign may be either where both sides are as good as equal. `unknown`: what that leaves
  // open.
  Vector of_q(q.size()), unknown(q.size());
  double size = 0, mean = 0, unknown_mean = 0;
  for (int64_t j = 0; j < call.others; ++j) {
    const Vector& p = teacher.shares[size_t(b * call.others + j)];
    if (p.empty() || q.empty()) continue;
    const double w = upstream[(b * call.rows + i) * call.others + j];
    size += std::abs(w);
    for (size_t v = 0; v < q.size(); ++v) {
      if (std::abs(q[v] - p[v]) <= error(q[v], rate, call.softmax) + error(p[v], rate, call.softmax)) {
        if (call.softmax) unknown[v] += std::abs(w);
      } else {
        of_q[v] += w * (q[v] > p[v] ? 1 : -1);
      }
    }
  }
  for (size_t v = 0; call.softmax && v < q.size(); ++v) {
    mean += q[v] * of_q[v];
    unknown_mean += q[v] * unknown[v];
  }
  for (int64_t v = 0; v < call.width; ++v) {
    double wanted = 0, allowed = 0;
    if (v < call.columns && !q.empty()) {
      const double x = q[size_t(v)], g = of_q[size_t(v)], k = call.inverse_temperature_student;
      wanted = call.softmax ? k * x * (g - mean) : g;
      allowed = call.softmax
                    ? k * (2 * size * (error(x, rate, true) + x * rate) + x * (unknown[size_t(v)] + unknown_mean))
                    : rate * size;
      allowed += 1e-30 + rounding(wanted, gradient.dtype);
    }
    const double actual = gradient[(b * call.rows + i) * call.width + v];
    if (!(std::abs(actual - wanted) <= allowed)) fail("gradient", call, b, i);
  }
}

void one_call() {
  kd::L1Call call{};
  const bool small = chance(0.9);
  const int64_t edges[] = {0, 1, 2, 3, 4, 5, 7, 8, 9, 17, 63, 64, 65, 66};
  call.problems = uniform(0, 2);
  call.rows = edges[uniform(0, small ? 13 : 5)];
  call.others = edges[uniform(0, !small ? 5 : call.rows > 20 ? 8 : 13)];
  // About a register and a block; rarely more blocks than sums are split into.
  const int64_t wide_edges[] = {1023, 1024, 1025, 2048, 2049, 3000};
  call.columns = small ? uniform(1, 40) : chance(0.03) ? uniform(32000, 36000) : wide_edges[uniform(0, 5)];
  call.width = call.columns + (chance(0.3) ? uniform(1, 70) : 0);
  const bool wide = chance(0.2);
  const auto half_or_single = [] { return static_cast<kd::DType>(uniform(0, 2)); };
  const kd::DType student_dtype = wide ? kd::DType::kFloat64 : half_or_single();
  const kd::DType teacher_dtype = wide ? kd::DType::kFloat64 : chance(0.5) ? student_dtype : half_or_single();
  const kd::DType real = real_of(student_dtype);
  call.softmax = chance(0.7);
  const auto inverse_temperature = [&] {
    return !call.softmax || chance(0.5) ? 1.0 : std::exp(std::normal_distribution<>(0, 0.7)(g_random));
  };
  call.inverse_temperature_student = inverse_temperature();
  call.inverse_temperature_teacher = inverse_temperature();
  Side student(call.problems, call.rows, call.columns, call.width, student_dtype);
  Side teacher(call.problems, call.others, call.columns, call.columns + (chance(0.3) ? uniform(1, 9) : 0),
               teacher_dtype);
  const auto content = static_cast<Content>(uniform(0, 3));
  const bool finite = !call.softmax && content == Content::kForbidden;  // -inf minus -inf
  student.fill(finite ? Content::kOrdinary : content, call.softmax, call.inverse_temperature_student);
  teacher.fill(finite ? Content::kOrdinary : content, call.softmax, call.inverse_temperature_teacher);
  call.student = student.batch;
  call.teacher = teacher.batch;
  call.student_mask = student.flags_if_masked();
  call.teacher_mask = teacher.flags_if_masked();

  const int64_t rows = call.problems * call.rows, pairs = rows * call.others;
  Tensor statistics(2 * (rows + call.problems * call.others), real), cost(pairs, real);
  call.statistics = statistics.data;
  call.cost = cost.data;
  kd::limit_simd(static_cast<kd::Simd>(uniform(0, 2)));
  on_threads(kd::run_l1_cost, call);
  const double rate = wide ? 1e-12 : 2e-6;
  for (int64_t r = 0; r < rows; ++r) check_cost(call, r / call.rows, r % call.rows, student, teacher, cost, rate);
  if (chance(0.3)) return;

  Tensor upstream(pairs, real), gradient(rows * call.width, student_dtype);
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t j = 0; j < call.others; ++j) {
      if (student.flags()[r] && teacher.flags()[r / call.rows * call.others + j])
        upstream.set(r * call.others + j, std::normal_distribution<>()(g_random));
    }
  }
  call.cost = nullptr;
  call.upstream = upstream.data;
  call.gradient = gradient.data;
  on_threads(kd::run_l1_cost_backward, call);
  for (int64_t r = 0; r < rows && content != Content::kNan; ++r)
    check_gradient(call, r / call.rows, r % call.rows, student, teacher, upstream, gradient, rate);
}

}  // namespace

int main(int argc, char** argv) {
  g_random.seed(argc > 1 ? std::strtoull(argv[1], nullptr, 10) : 0);
  const int64_t calls = argc > 2 ? std::strtoll(argv[2], nullptr, 10) : 1000;
  for (int64_t i = 0; i < calls; ++i) one_call();
  std::printf("%lld calls\n", static_cast<long long>(calls));
}
