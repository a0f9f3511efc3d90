// Feeds the passes over slices of the vocabulary random cuts, layouts, types and hostile numbers, from buffers that end
// where the tensors do. Built with the address and undefined-behaviour sanitizers, it fails where they find something,
// where a row breaks a promise (rows of weight 0 give exactly 0, numbers give no NaN, memory between rows is kept), or
// where a slice or a row of finite logits is not what sums in double make of it.
//
//   fuzz_slices SEED CALLS
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "cpu/driver.h"
#include "fuzz.h"

namespace {

using kd::SliceState;
using kd::SliceStatistic;

constexpr double kBetween = 7;  // what memory between rows holds

[[noreturn]] void fail(const char* what, const kd::SliceCall& call, int64_t row) {
  std::fprintf(stderr, "%s: row %lld of %lld, %lld columns, family %d, param %g, 1 / T %g %g, dtypes %d %d, simd %d\n",
               what, static_cast<long long>(row), static_cast<long long>(call.rows),
               static_cast<long long>(call.columns), int(call.family), call.param, call.inverse_temperature_student,
               call.inverse_temperature_teacher, int(call.student.dtype), int(call.teacher.dtype), int(kd::simd()));
  std::exit(1);
}

// How a row is filled. Of ordinary and near rows everything is checked, of huge ones that it is a number.
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

// The logits of one side of a slice, and the numbers they hold.
struct Side {
  Buffer buffer;
  kd::Matrix matrix{};
  std::vector<double> z;  // [rows, columns]

  void allocate(int64_t rows, int64_t columns, kd::DType dtype) {
    matrix = {nullptr, columns + (chance(0.5) ? uniform(0, 9) : 0), dtype};
    matrix.data = buffer.allocate(rows ? (rows - 1) * matrix.row_stride + columns : 0, dtype);
    for (int64_t i = 0; i + 1 < rows; ++i)
      for (int64_t j = columns; j < matrix.row_stride; ++j)
        put(matrix.data, dtype, i * matrix.row_stride + j, kBetween);
    z.resize(size_t(rows * columns));
  }
  void set(int64_t row, int64_t column, int64_t columns, double x) {
    const int64_t at = row * matrix.row_stride + column;
    put(matrix.data, matrix.dtype, at, x);
    z[size_t(row * columns + column)] = get(matrix.data, matrix.dtype, at);
  }
};

struct Slice {
  int64_t columns;
  Side student, teacher;
};

// The softmax of some logits times 1 / T, in double.
struct Softmax {
  double rate, top = -INFINITY, mass = 0, entropy = 0;

  Softmax(const std::vector<double>& z, double rate) : rate(rate) {
    for (double x : z) top = std::max(top, x);
    for (double x : z) mass += std::exp((x - top) * rate);
    for (double x : z) entropy -= std::exp(log_probability(x)) * log_probability(x);
  }
  double log_probability(double x) const { return (x - top) * rate - std::log(mass); }
  double log_sum(double shift) const { return (top - shift) * rate + std::log(mass); }
};

struct Terms {
  double value = 0, forward = 0;
  std::vector<double> h, q;  // q dD/dq
};

// The textbook formulas.
Terms textbook(kd::Family family, double a, double forward, double reverse, const std::vector<double>& zs,
               const std::vector<double>& zt, double k_s, double k_t) {
  const Softmax student(zs, k_s), teacher(zt, k_t);
  const double b = 1 - a;
  Terms t;
  for (size_t j = 0; j < zs.size(); ++j) {
    const double lq = student.log_probability(zs[j]), lp = teacher.log_probability(zt[j]);
    const double p = std::exp(lp), q = std::exp(lq), d = lq - lp;
    double value = 0, h = 0;
    switch (family) {
      case kd::Family::kKl:
        value = (reverse * q - forward * p) * d;
        h = reverse * q * (1 + d) - forward * p;
        break;
      case kd::Family::kJsd: {
        const double lm = std::log(a * p + b * q);
        value = a * p * (lp - lm) + b * q * (lq - lm);
        h = b * q * (lq - lm);
        break;
      }
      case kd::Family::kTeacherMixture: {
        const double m = b * p + a * q;
        value = p * (lp - std::log(m));
        h = -a * p * q / m;
        break;
      }
      case kd::Family::kStudentMixture: {
        const double m = b * p + a * q;
        value = q * (lq - std::log(m));
        h = q * (lq - std::log(m) + 1 - a * q / m);
        break;
      }
      case kd::Family::kTvd:
        value = std::abs(p - q) / 2;
        h = q * (q > p ? 0.5 : q < p ? -0.5 : 0);
        break;
      case kd::Family::kTodi: {
        const double w = 1 / (1 + std::exp(a * d));
        value = ((1 - w) * q - w * p) * d;
        h = (1 - w) * q * (1 + d) - w * p;
        break;
      }
      case kd::Family::kAkl: break;
    }
    t.value += value;
    t.forward -= p * d;
    t.h.push_back(h);
    t.q.push_back(q);
  }
  return t;
}

double curvature(kd::Family family, double a) {
  switch (family) {
    case kd::Family::kJsd: return a * (1 - a);
    case kd::Family::kTeacherMixture: return a * a;
    case kd::Family::kStudentMixture: return (1 - a) * (1 - a);
    case kd::Family::kTodi: return 1 + a;
    default: return 1;
  }
}

// A float32 sum of terms as large as `size`, of logits that a product by 1 / T rounds.
bool close(double actual, double expected, double size) {
  return std::abs(actual - expected) <= 1e-4 * std::max(std::abs(expected), size);
}

// What a slice says of itself, as a distribution of its own.
void check_statistics(const kd::SliceCall& call, int64_t row, const std::vector<double>& zs,
                      const std::vector<double>& zt, double k_s, double k_t) {
  const auto field = [&](int i) { return call.statistics[i * call.rows + row]; };
  const Softmax student(zs, k_s), teacher(zt, k_t);
  if (field(SliceStatistic::kTopStudent) != student.top) fail("top of the student", call, row);
  if (field(SliceStatistic::kTopTeacher) != teacher.top) fail("top of the teacher", call, row);
  if (!close(field(SliceStatistic::kSumStudent), student.mass, 0)) fail("mass of the student", call, row);
  if (!close(field(SliceStatistic::kSumTeacher), teacher.mass, 0)) fail("mass of the teacher", call, row);
  const double entropies[] = {call.entropies ? student.entropy : 0, call.entropies ? teacher.entropy : 0};
  if (!close(field(SliceStatistic::kStudentEntropy), entropies[0], 1)) fail("entropy of the student", call, row);
  if (!close(field(SliceStatistic::kTeacherEntropy), entropies[1], 1)) fail("entropy of the teacher", call, row);

  // Both KLs are those at the gap that the slice measured: off by its error times the residue.
  const double late = std::log1p(field(SliceStatistic::kResidue)), bend = std::expm1(late) - late;
  const double mirrored = std::expm1(-late) + late;
  double forward = 0, reverse = 0;
  for (size_t j = 0; j < zs.size(); ++j) {
    const double lq = student.log_probability(zs[j]), lp = teacher.log_probability(zt[j]), d = lq - lp;
    forward += std::exp(lp) * (std::expm1(d) - d);
    reverse += std::exp(lq) * (std::expm1(-d) + d);
  }
  if (!close(field(SliceStatistic::kForward) - bend, forward, 1e-7)) fail("KL(p, q) of a slice", call, row);
  if (!close(field(SliceStatistic::kReverse) - mirrored, reverse, 1e-7)) fail("KL(q, p) of a slice", call, row);
  const double shift_s = field(SliceStatistic::kShiftStudent), shift_t = field(SliceStatistic::kShiftTeacher);
  const double gap = student.log_sum(shift_s) - teacher.log_sum(shift_t);
  if (!close(field(SliceStatistic::kGap) + late, gap, 1e-2)) fail("gap of a slice", call, row);
}

void one_call() {
  kd::SliceCall call{};
  call.rows = uniform(0, 5);
  const bool wide = chance(0.2);
  const auto half_or_single = [] { return static_cast<kd::DType>(uniform(0, 2)); };
  const kd::DType student_dtype = wide ? kd::DType::kFloat64 : half_or_single();
  const kd::DType teacher_dtype = wide ? kd::DType::kFloat64 : chance(0.5) ? student_dtype : half_or_single();
  const auto real = [wide](double x) { return wide ? x : double(float(x)); };  // as the kernels round a number
  call.inverse_temperature_student = chance(0.5) ? 1.0 : std::exp(std::normal_distribution<>(0, 0.7)(g_random));
  call.inverse_temperature_teacher = chance(0.5) ? 1.0 : std::exp(std::normal_distribution<>(0, 0.7)(g_random));
  const double k_s = real(call.inverse_temperature_student);
  const double ratio = real(call.inverse_temperature_teacher / call.inverse_temperature_student), k_t = ratio * k_s;
  const kd::Family families[] = {kd::Family::kKl,  kd::Family::kJsd,  kd::Family::kTeacherMixture,
                                 kd::Family::kTvd, kd::Family::kTodi, kd::Family::kStudentMixture};
  call.family = families[uniform(0, 5)];
  call.param = chance(0.3) ? 0.5 : std::uniform_real_distribution<>(0.01, 0.99)(g_random);
  if (call.family == kd::Family::kTodi) call.param = double(uniform(0, 2));
  call.entropies = chance(0.5);

  std::vector<Slice> slices(size_t(uniform(1, 3)));
  for (Slice& slice : slices) {
    slice.columns = chance(0.1) ? columns() : std::min<int64_t>(columns(), 600);
    slice.student.allocate(call.rows, slice.columns, student_dtype);
    slice.teacher.allocate(call.rows, slice.columns, teacher_dtype);
  }
  std::vector<Content> contents;
  for (int64_t i = 0; i < call.rows; ++i) {
    const Content content = contents.emplace_back(static_cast<Content>(uniform(0, 4)));
    const double shift = content != Content::kHuge && chance(0.2) ? 1e4 : 0;  // half precision ends at 65504
    for (Slice& slice : slices) {
      const bool nothing = content == Content::kForbidden && chance(0.2);
      for (int64_t j = 0; j < slice.columns; ++j) {
        const double t = nothing ? -INFINITY : entry(content) + shift;
        slice.teacher.set(i, j, slice.columns, t);
        slice.student.set(i, j, slice.columns, content == Content::kNear ? t + 1e-3 * entry(content) : entry(content));
      }
    }
  }
  std::vector<double> weights(size_t(call.rows), 1.0);
  Buffer weight, statistics, state, sums, factor;
  const auto doubles = [](Buffer* buffer, int64_t n) {
    return static_cast<double*>(buffer->allocate(n, kd::DType::kFloat64));
  };
  if (chance(0.5)) {
    double* w = doubles(&weight, call.rows);
    for (int64_t i = 0; i < call.rows; ++i) w[i] = weights[size_t(i)] = chance(0.3) ? 0 : 0.5;
    call.weight = w;
  }
  const auto run = [&](Slice* slice, kd::SlicePass pass) {
    call.pass = pass;
    call.columns = slice->columns;
    call.student = slice->student.matrix;
    call.teacher = slice->teacher.matrix;
    kd::limit_simd(static_cast<kd::Simd>(uniform(0, 2)));
    kd::run_slice(call, int(uniform(1, 3)));
  };
  const auto row_of = [](const Side& side, int64_t columns, int64_t row) {
    return std::vector<double>(side.z.begin() + row * columns, side.z.begin() + (row + 1) * columns);
  };
  const auto exact = [&](int64_t row) {
    const Content content = contents[size_t(row)];
    return weights[size_t(row)] != 0 && (content == Content::kOrdinary || content == Content::kNear);
  };

  call.statistics = doubles(&statistics, SliceStatistic::kCount * call.rows);
  for (Slice& slice : slices) {
    std::fill_n(call.statistics, SliceStatistic::kCount * call.rows, NAN);
    run(&slice, kd::SlicePass::kStatistics);
    for (int64_t i = 0; i < call.rows; ++i) {
      for (int f = 0; f < SliceStatistic::kCount; ++f) {
        const double x = call.statistics[f * call.rows + i];
        if (weights[size_t(i)] == 0 && x != 0) fail("statistics of a row of weight 0", call, i);
        if (contents[size_t(i)] != Content::kNan && std::isnan(x)) fail("statistics", call, i);
      }
      if (exact(i))
        check_statistics(call, i, row_of(slice.student, slice.columns, i), row_of(slice.teacher, slice.columns, i), k_s,
                         k_t);
    }
  }

  // What is known of the whole row.
  double* known = doubles(&state, SliceState::kCount * call.rows);
  double* factors = doubles(&factor, call.rows);
  std::vector<Terms> truth;
  std::vector<bool> defined;
  for (int64_t i = 0; i < call.rows; ++i) {
    std::vector<double> zs, zt;
    for (const Slice& slice : slices) {
      const auto s = row_of(slice.student, slice.columns, i), t = row_of(slice.teacher, slice.columns, i);
      zs.insert(zs.end(), s.begin(), s.end());
      zt.insert(zt.end(), t.begin(), t.end());
    }
    const Softmax student(zs, k_s), teacher(zt, k_t);
    const double apart = (student.top - ratio * teacher.top) * k_s;
    const bool near = std::abs(apart) < 64;
    const double shift_s = near ? 0 : student.top, shift_t = near ? 0 : teacher.top;
    defined.push_back(std::isfinite(1 / student.mass) && std::isfinite(1 / teacher.mass));
    double forward = double(uniform(0, 2)) / 2, reverse = 1 - forward;
    if (chance(0.3)) forward = reverse = 1;
    const Terms terms = textbook(call.family, call.param, forward, reverse, zs, zt, k_s, k_t);
    const auto set = [&](int f, double x) { known[f * call.rows + i] = x; };
    set(SliceState::kTopStudent, student.top);
    set(SliceState::kTopTeacher, teacher.top);
    set(SliceState::kInverseStudent, defined.back() ? 1 / student.mass : NAN);
    set(SliceState::kInverseTeacher, defined.back() ? 1 / teacher.mass : NAN);
    set(SliceState::kShiftStudent, shift_s);
    set(SliceState::kShiftTeacher, shift_t);
    set(SliceState::kGap, student.log_sum(shift_s) - teacher.log_sum(shift_t));
    set(SliceState::kForwardWeight, forward);
    set(SliceState::kReverseWeight, reverse);
    set(SliceState::kFar, curvature(call.family, call.param) * terms.forward < 1.0 / 64 ? 0 : 1);
    set(SliceState::kHSum, 0);
    factors[i] = double(uniform(-8, 8)) / 4;
    truth.push_back(terms);
  }
  call.state = known;
  call.factor = factors;

  call.sums = doubles(&sums, 2 * call.rows);
  std::vector<double> value(size_t(call.rows), 0), h_sum(size_t(call.rows), 0);
  for (Slice& slice : slices) {
    std::fill_n(call.sums, 2 * call.rows, NAN);
    run(&slice, kd::SlicePass::kSums);
    for (int64_t i = 0; i < call.rows; ++i) {
      value[size_t(i)] += call.sums[i];
      h_sum[size_t(i)] += call.sums[call.rows + i];
    }
  }
  for (int64_t i = 0; i < call.rows; ++i) {
    const double v = value[size_t(i)];
    const bool counts = weights[size_t(i)] != 0;
    if (!counts && (v != 0 || h_sum[size_t(i)] != 0)) fail("sums of a row of weight 0", call, i);
    if (counts && !defined[size_t(i)] && !std::isnan(v)) fail("value without a softmax", call, i);
    if (counts && defined[size_t(i)] && !(v >= 0)) fail("value", call, i);
    // TVD is O(d), the others are O(d^2); the rounding of a logit is in d.
    if (exact(i) && !close(v, truth[size_t(i)].value, call.family == kd::Family::kTvd ? 1e-2 : 1e-7))
      fail("value in double", call, i);
    known[SliceState::kHSum * call.rows + i] = std::min(h_sum[size_t(i)], 1e30);
  }

  std::vector<double> whole(size_t(call.rows), 0);
  size_t first = 0;
  for (Slice& slice : slices) {
    Side gradient;
    if (chance(0.4)) {
      call.grad = slice.student.matrix;
    } else {
      gradient.allocate(call.rows, slice.columns, student_dtype);
      call.grad = gradient.matrix;
    }
    run(&slice, kd::SlicePass::kGradient);
    for (int64_t i = 0; i < call.rows; ++i) {
      const auto at = [&](int64_t j) { return get(call.grad.data, student_dtype, i * call.grad.row_stride + j); };
      const bool counts = weights[size_t(i)] != 0;
      const Terms& t = truth[size_t(i)];
      double sum_h = 0, largest = 0;
      if (exact(i)) {
        for (double h : t.h) sum_h += h;
        for (size_t j = 0; j < t.h.size(); ++j) largest = std::max(largest, std::abs(t.h[j] - t.q[j] * sum_h));
      }
      // The student's dtype rounds; bfloat16 has 8 bits, float16 none below 6e-8.
      const double rounding = student_dtype == kd::DType::kBFloat16 ? 1.0 / 256 : 1.0 / 2048;
      const double allowed = std::abs(factors[i]) * (largest * rounding + 1e-4 * std::abs(t.value)) + 6e-8;
      for (int64_t j = 0; j < slice.columns; ++j) {
        if (!counts && at(j) != 0) fail("gradient of a row of weight 0", call, i);
        if (counts && !defined[size_t(i)] && !std::isnan(at(j))) fail("gradient without a softmax", call, i);
        if (counts && defined[size_t(i)] && std::isnan(at(j))) fail("gradient", call, i);
        // Where p = q, to the last digit, TVD has a gradient of either sign.
        if (!exact(i) || (call.family == kd::Family::kTvd && contents[size_t(i)] == Content::kNear)) continue;
        const size_t v = first + size_t(j);
        if (!(std::abs(at(j) - factors[i] * (t.h[v] - t.q[v] * sum_h)) <= allowed)) fail("gradient in double", call, i);
      }
      for (int64_t j = slice.columns; i + 1 < call.rows && j < call.grad.row_stride; ++j)
        if (at(j) != kBetween) fail("memory between rows", call, i);
    }
    first += size_t(slice.columns);
  }
}

}  // namespace

int main(int argc, char** argv) {
  g_random.seed(argc > 1 ? std::strtoull(argv[1], nullptr, 10) : 0);
  const int64_t calls = argc > 2 ? std::strtoll(argv[2], nullptr, 10) : 1000;
  for (int64_t i = 0; i < calls; ++i) one_call();
  std::printf("%lld calls\n", static_cast<long long>(calls));
}
