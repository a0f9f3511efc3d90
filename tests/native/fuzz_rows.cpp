// Feeds the native core random shapes, layouts, types and hostile numbers, from buffers that end where the tensors do.
// Built with the address and undefined-behaviour sanitizers, it fails where they find something, or where a row breaks
// a promise: rows of weight 0 give exactly 0, numbers give no NaN, values are never negative, memory between rows is
// kept.
//
//   fuzz_rows SEED CALLS
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "cpu/driver.h"
#include "fuzz.h"

namespace {

[[noreturn]] void fail(const char* what, const kd::RowsCall& call, int64_t row) {
  std::fprintf(stderr, "%s: row %lld of %lld, %lld columns, family %d, params %g %g, dtypes %d %d, simd %d\n", what,
               static_cast<long long>(row), static_cast<long long>(call.rows), static_cast<long long>(call.columns),
               int(call.family), call.params[0], call.params[1], int(call.student.dtype), int(call.teacher.dtype),
               int(kd::simd()));
  std::exit(1);
}

// How a row is filled. Only finite rows have a divergence that is a number for certain.
enum class Content { kOrdinary, kNear, kHuge, kForbidden, kNan };

double entry(Content content) {
  const double ordinary = std::normal_distribution<>(0, 3)(g_random);
  switch (content) {
    case Content::kHuge: {
      const double pool[] = {0.0, -0.0, 1e4, -1e4, 6e4, -6e4, 1e-40, 5e-8, ordinary};
      return pool[uniform(0, 8)];
    }
    case Content::kForbidden: return chance(0.3) ? -INFINITY : ordinary;
    case Content::kNan: return chance(0.1) ? (chance(0.5) ? NAN : INFINITY) : ordinary;
    default: return ordinary;
  }
}

void one_call() {
  kd::RowsCall call{};
  call.rows = uniform(0, 6);
  call.columns = columns();
  call.width = call.columns + (chance(0.3) ? uniform(1, 70) : 0);
  const bool wide = chance(0.2);
  const auto half_or_single = [] { return static_cast<kd::DType>(uniform(0, 2)); };
  call.student.dtype = wide ? kd::DType::kFloat64 : half_or_single();
  call.teacher.dtype = wide ? kd::DType::kFloat64 : chance(0.5) ? call.student.dtype : half_or_single();
  call.student.row_stride = call.width + (chance(0.5) ? uniform(0, 9) : 0);
  call.teacher.row_stride = call.columns + (chance(0.5) ? uniform(0, 9) : 0);

  const auto elements = [&](int64_t stride, int64_t width) { return call.rows ? (call.rows - 1) * stride + width : 0; };
  Buffer student, teacher, gradient;
  call.student.data = student.allocate(elements(call.student.row_stride, call.width), call.student.dtype);
  call.teacher.data = teacher.allocate(elements(call.teacher.row_stride, call.columns), call.teacher.dtype);
  std::vector<Content> contents;
  for (int64_t i = 0; i < call.rows; ++i) {
    const auto content = static_cast<Content>(uniform(0, 4));
    contents.push_back(content);
    const double shift = chance(0.2) ? 1e4 : 0;
    for (int64_t j = 0; j < call.columns; ++j) {
      const double t = entry(content) + shift;
      put(call.teacher.data, call.teacher.dtype, i * call.teacher.row_stride + j, t);
      const double s = content == Content::kNear ? t + 1e-3 * entry(content) : entry(content);
      put(call.student.data, call.student.dtype, i * call.student.row_stride + j, s);
    }
    for (int64_t j = call.columns; j < call.width; ++j)
      put(call.student.data, call.student.dtype, i * call.student.row_stride + j, NAN);
  }

  const bool in_place = chance(0.3), with_gradient = in_place || chance(0.7);
  if (in_place) {
    call.grad = call.student;
  } else if (with_gradient) {
    call.grad = {nullptr, call.width, call.student.dtype};
    call.grad.data = gradient.allocate(elements(call.width, call.width), call.grad.dtype);
  }
  const kd::DType real = wide ? kd::DType::kFloat64 : kd::DType::kFloat32;
  Buffer weight, upstream, value, entropy_s, entropy_t, normalizer, loss;
  std::vector<double> weights(size_t(call.rows), 1.0);
  if (chance(0.5)) {
    void* w = weight.allocate(call.rows, real);
    for (int64_t i = 0; i < call.rows; ++i) {
      weights[size_t(i)] = chance(0.3) ? 0.0 : double(uniform(1, 8)) / 4;
      put(w, real, i, weights[size_t(i)]);
    }
    call.weight = w;
  }
  if (chance(0.4)) {
    void* u = upstream.allocate(call.rows, real);
    for (int64_t i = 0; i < call.rows; ++i) put(u, real, i, std::normal_distribution<>()(g_random));
    call.upstream = u;
  }
  if (chance(0.4)) {
    call.student_entropy = entropy_s.allocate(call.rows, real);
    call.teacher_entropy = entropy_t.allocate(call.rows, real);
  }
  call.inverse_temperature_student = chance(0.5) ? 1.0 : std::exp(std::normal_distribution<>()(g_random));
  call.inverse_temperature_teacher = chance(0.5) ? 1.0 : std::exp(std::normal_distribution<>()(g_random));
  call.scale = chance(0.5) ? 1.0 : 4.0;
  call.family = static_cast<kd::Family>(uniform(0, 6));
  const double parameter = chance(0.3) ? 0.5 : std::uniform_real_distribution<>(0.01, 0.99)(g_random);
  call.params[0] = parameter;
  if (call.family == kd::Family::kKl) {
    call.params[0] = double(uniform(0, 1));
    call.params[1] = call.params[0] == 0 ? 1.0 : double(uniform(0, 1));
  } else if (call.family == kd::Family::kTodi) {
    call.params[0] = double(uniform(0, 2));
  }

  kd::Total total{static_cast<kd::Reduction>(uniform(0, 2)), nullptr, nullptr};
  if (total.reduction == kd::Reduction::kNone || chance(0.3)) call.value = value.allocate(call.rows, real);
  if (total.reduction != kd::Reduction::kNone) total.loss = loss.allocate(1, real);
  if (total.reduction == kd::Reduction::kSum && chance(0.5)) {
    void* n = normalizer.allocate(1, real);
    put(n, real, 0, 7);
    total.normalizer = n;
  }
  kd::limit_simd(static_cast<kd::Simd>(uniform(0, 2)));
  kd::run_rows(call, total, int(uniform(1, 3)));

  for (int64_t i = 0; i < call.rows; ++i) {
    const double w = weights[size_t(i)];
    const bool number = contents[size_t(i)] == Content::kOrdinary || contents[size_t(i)] == Content::kNear;
    if (call.value) {
      const double v = get(call.value, real, i);
      if (w == 0 && v != 0) fail("value of a row of weight 0", call, i);
      if (number && !(v >= 0 && std::isfinite(v))) fail("value", call, i);
      if (v < 0) fail("negative value", call, i);
    }
    if (!call.grad.data) continue;
    for (int64_t j = 0; j < call.width; ++j) {
      const double x = get(call.grad.data, call.grad.dtype, i * call.grad.row_stride + j);
      if ((w == 0 || j >= call.columns) && x != 0) fail("gradient where nothing counts", call, i);
      if (number && !std::isfinite(x)) fail("gradient", call, i);
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
