// Feeds Sinkhorn iterations and their derivative random sizes, layouts, types and hostile numbers, from buffers that
// end where the tensors do. Built with the address and undefined-behaviour sanitizers, it fails where they find
// something, where an output is not written, or where a problem of numbers is not what the logarithmic form in double,
// and that form's derivative, make of it.
//
//   fuzz_sinkhorn SEED CALLS
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

using std::abs;
using Vector = std::vector<double>;

constexpr kd::DType kInteger = kd::DType::kFloat64;  // as wide
constexpr double kTiny = 1e-30;                      // float32 has no digits there

[[noreturn]] void fail(const char* what, const kd::SinkhornProblems& of, int64_t problem) {
  std::fprintf(stderr,
               "%s: problem %lld of %lld, %lld x %lld, %lld iterations, eps %g, entropic %d, dtype %d, simd %d\n", what,
               static_cast<long long>(problem), static_cast<long long>(of.problems), static_cast<long long>(of.rows),
               static_cast<long long>(of.columns), static_cast<long long>(of.iterations), of.eps[problem],
               int(of.entropic), int(of.cost.first.dtype), int(kd::simd()));
  std::exit(1);
}

// How a problem is filled. Sharp ones have an eps that asks for new offsets in between, far ones columns that no row
// prefers, blocks a permutation's minima, which scalings of exactly 1 meet. With a NaN nothing need be a number.
enum class Content { kOrdinary, kForbidden, kSharp, kFar, kBlocks, kNan };

// One problem's numbers, rows and columns beyond its lengths left out, and those without mass with a cost of 0.
struct Problem {
  Content content;
  int64_t n, m;
  double eps;
  Vector cost, a, b, start;

  bool counts(int64_t i, int64_t j) const { return a[size_t(i)] > 0 && b[size_t(j)] > 0; }
};

double log_sum_exp(const Vector& x) {
  const double top = x.empty() ? -INFINITY : *std::max_element(x.begin(), x.end());
  if (top == -INFINITY) return top;
  double sum = 0;
  for (double v : x) sum += std::exp(v - top);
  return top + std::log(sum);
}

// The potential over eps of a row or column: -inf where it has no mass, or nowhere to send it.
double potential(double mass, double log_sum) {
  return mass > 0 && log_sum > -INFINITY ? std::log(mass) - log_sum : -INFINITY;
}

// A sum and what it is made of: errors are measured by the size of the terms.
struct Sum {
  double value = 0, size = 0;
  void add(double x) { add(x, abs(x)); }
  void add(double x, double s) {
    value += x;
    size += s;
  }
};
using Sums = std::vector<Sum>;

// The iterations in the logarithmic form.
struct Truth {
  const Problem& p;
  std::vector<Vector> alpha, beta;  // after each iteration; at first those it starts from

  explicit Truth(const Problem& problem, int64_t iterations) : p(problem) {
    alpha.emplace_back(size_t(p.n), -INFINITY);
    beta.emplace_back();
    for (int64_t j = 0; j < p.m; ++j) beta[0].push_back(p.b[size_t(j)] > 0 ? p.start[size_t(j)] / p.eps : -INFINITY);
    for (int64_t t = 0; t < iterations; ++t) {
      Vector next_alpha, next_beta, terms;
      for (int64_t i = 0; i < p.n; ++i) {
        terms.clear();
        for (int64_t j = 0; j < p.m; ++j) terms.push_back(score(i, j) + beta[size_t(t)][size_t(j)]);
        next_alpha.push_back(potential(p.a[size_t(i)], log_sum_exp(terms)));
      }
      for (int64_t j = 0; j < p.m; ++j) {
        terms.clear();
        for (int64_t i = 0; i < p.n; ++i) terms.push_back(score(i, j) + next_alpha[size_t(i)]);
        next_beta.push_back(potential(p.b[size_t(j)], log_sum_exp(terms)));
      }
      alpha.push_back(next_alpha);
      beta.push_back(next_beta);
    }
  }

  double score(int64_t i, int64_t j) const { return p.counts(i, j) ? -p.cost[size_t(i * p.m + j)] / p.eps : -INFINITY; }
  double plan(int64_t i, int64_t j, int64_t rows_at, int64_t columns_at) const {
    return std::exp(score(i, j) + alpha[size_t(rows_at)][size_t(i)] + beta[size_t(columns_at)][size_t(j)]);
  }
  double mass() const {
    double sum = 0;
    for (double x : p.a) sum += x;
    return sum;
  }
  double error(int64_t t) const {
    double misplaced = 0;
    for (int64_t i = 0; i < p.n; ++i) {
      double sent = 0;
      for (int64_t j = 0; j < p.m; ++j) sent += plan(i, j, t, t);
      misplaced += abs(sent - p.a[size_t(i)]);
    }
    return mass() > 0 ? misplaced / mass() : 0;
  }
  Sum value(int64_t t, bool entropic) const {
    Sum sum;
    for (int64_t i = 0; i < p.n; ++i) {
      for (int64_t j = 0; j < p.m; ++j) {
        const double x = plan(i, j, t, t);
        if (x > 0) sum.add(x * derivative(i, j, t, entropic), x * derivative_size(i, j, t, entropic));
        if (entropic) sum.add(-p.eps * x);
      }
    }
    return sum;
  }
  // Of the value by the plan.
  double derivative(int64_t i, int64_t j, int64_t t, bool entropic) const {
    return entropic ? p.eps * (alpha[size_t(t)][size_t(i)] + beta[size_t(t)][size_t(j)]) : p.cost[size_t(i * p.m + j)];
  }
  double derivative_size(int64_t i, int64_t j, int64_t t, bool entropic) const {
    const double size = abs(alpha[size_t(t)][size_t(i)]) + abs(beta[size_t(t)][size_t(j)]);
    return entropic ? p.eps * size : abs(p.cost[size_t(i * p.m + j)]);
  }
};

struct Gradients {
  Sums cost, a, b;
};

// The derivative of `upstream` times the value, plus <plan_upstream, P>, through iterations `last` to 1.
Gradients differentiate(const Truth& truth, int64_t last, bool entropic, double upstream, const Vector& plan_upstream) {
  const Problem& p = truth.p;
  const int64_t n = p.n, m = p.m;
  Gradients g{Sums(size_t(n * m)), Sums(size_t(n)), Sums(size_t(m))};
  Sums of_alpha(static_cast<size_t>(n)), of_beta(static_cast<size_t>(m));
  const auto send = [&](Sum* to, const Sum& from, double weight) {
    to->add(weight * from.value, abs(weight) * from.size);
  };
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = 0; j < m; ++j) {
      const double x = truth.plan(i, j, last, last);
      if (!(x > 0)) continue;
      Sum of_plan;
      of_plan.add(upstream * truth.derivative(i, j, last, entropic),
                  abs(upstream) * truth.derivative_size(i, j, last, entropic));
      of_plan.add(plan_upstream[size_t(i * m + j)]);
      send(&of_alpha[size_t(i)], of_plan, x);
      send(&of_beta[size_t(j)], of_plan, x);
      send(&g.cost[size_t(i * m + j)], of_plan, -x / p.eps);
      g.cost[size_t(i * m + j)].add(upstream * x);
    }
  }
  const auto per_mass = [&](Sums* sums, const Sums& parts, const Vector& mass) {
    for (size_t i = 0; i < parts.size(); ++i)
      if (mass[i] > 0) send(&(*sums)[i], parts[i], 1 / mass[i]);
  };
  for (int64_t t = last; t >= 1; --t) {
    per_mass(&g.b, of_beta, p.b);
    for (int64_t i = 0; i < n; ++i) {
      for (int64_t j = 0; j < m; ++j) {
        if (!p.counts(i, j)) continue;
        const double share = truth.plan(i, j, t, t) / p.b[size_t(j)];
        send(&of_alpha[size_t(i)], of_beta[size_t(j)], -share);
        send(&g.cost[size_t(i * m + j)], of_beta[size_t(j)], share / p.eps);
      }
    }
    per_mass(&g.a, of_alpha, p.a);
    std::fill(of_beta.begin(), of_beta.end(), Sum());
    for (int64_t i = 0; i < n; ++i) {
      for (int64_t j = 0; j < m; ++j) {
        if (!p.counts(i, j)) continue;
        const double share = truth.plan(i, j, t, t - 1) / p.a[size_t(i)];
        send(&of_beta[size_t(j)], of_alpha[size_t(i)], -share);
        send(&g.cost[size_t(i * m + j)], of_alpha[size_t(i)], share / p.eps);
      }
    }
    std::fill(of_alpha.begin(), of_alpha.end(), Sum());
  }
  return g;
}

int64_t size() {
  const int64_t edges[] = {0, 1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33};
  return chance(0.7) ? edges[uniform(0, 12)] : uniform(0, chance(0.1) ? 100 : 40);
}

double cost_of(Content content, int64_t i, int64_t j, int64_t m) {
  const double ordinary = std::exponential_distribution<>(1)(g_random);
  switch (content) {
    case Content::kForbidden: return chance(0.3) ? INFINITY : ordinary;
    case Content::kSharp: return 4 * ordinary;
    case Content::kFar: return ordinary + (j % 3 == 1 ? 40 : 0);
    case Content::kBlocks: {
      const int64_t column = i % m;
      return j % 4 == 3 ? INFINITY : j == column - (column % 4 == 3) ? 0 : 1;
    }
    default: return ordinary;
  }
}

double eps_of(Content content) {
  switch (content) {
    case Content::kSharp: return std::exp(std::uniform_real_distribution<>(-7, -3)(g_random));
    case Content::kFar: return 0.3;
    case Content::kBlocks: return 1e-3;
    default: return std::exp(std::normal_distribution<>(-1, 1)(g_random));
  }
}

class Check {
 public:
  Check(const kd::SinkhornCall& call, int64_t problem, const Problem& numbers)
      : call_(call), problem_(problem), p_(numbers), truth_(numbers, call.of.iterations), last_(call.run[problem]) {
    rate_ = call.of.cost.first.dtype == kd::DType::kFloat64 ? 1e-11 : 1e-5;
  }

  void iterations() const {
    const double slack = 1e-3 * call_.tolerance + 1e-5;
    if (last_ < 1 || last_ > call_.of.iterations) wrong("iterations");
    if (last_ < call_.of.iterations && !(truth_.error(last_) <= call_.tolerance + slack)) wrong("stopped early");
    for (int64_t t = 1; t < last_ && call_.tolerance >= 0; ++t)
      if (!(truth_.error(t) >= call_.tolerance - slack)) wrong("stopped late");
  }

  void results(const Tensor& value, const Tensor& error, const Tensor& f, const Tensor& g, const Tensor* plan) const {
    const int64_t rows = call_.of.rows, columns = call_.of.columns;
    const Sum expected = truth_.value(last_, call_.of.entropic);
    close("value", value[problem_], expected.value, expected.size);
    close("error", error[problem_], truth_.error(last_), 1 + truth_.error(last_));
    potentials("f", f, rows, truth_.alpha[size_t(last_)]);
    potentials("g", g, columns, truth_.beta[size_t(last_)]);
    for (int64_t i = 0; plan && i < rows; ++i) {
      for (int64_t j = 0; j < columns; ++j) {
        const double actual = (*plan)[(problem_ * rows + i) * columns + j];
        const bool inside = i < p_.n && j < p_.m;
        close("plan", actual, inside ? truth_.plan(i, j, last_, last_) : 0,
              inside ? p_.a[size_t(i)] + p_.b[size_t(j)] : 0);
      }
    }
  }

  void gradients(double upstream, const Vector& plan_upstream, const Tensor* cost, const Tensor* a,
                 const Tensor* b) const {
    const int64_t rows = call_.of.rows, columns = call_.of.columns;
    const Gradients expected = differentiate(truth_, last_, call_.of.entropic, upstream, plan_upstream);
    const double size = largest(expected.cost);
    for (int64_t i = 0; cost && i < rows; ++i) {
      for (int64_t j = 0; j < columns; ++j) {
        const bool inside = i < p_.n && j < p_.m;
        const double x = inside ? expected.cost[size_t(i * p_.m + j)].value : 0;
        if (cost->dtype == kd::DType::kFloat16 && abs(x) > 6e4) continue;
        close("gradient of the cost", (*cost)[(problem_ * rows + i) * columns + j], x, inside ? size : 0,
              rounding(x, cost->dtype));
      }
    }
    if (a) vector("gradient of a", *a, rows, expected.a);
    if (b) vector("gradient of b", *b, columns, expected.b);
  }

  [[noreturn]] void wrong(const char* what) const { fail(what, call_.of, problem_); }

 private:
  static double largest(const Sums& sums) {
    double size = 0;
    for (const Sum& x : sums) size = std::max(size, x.size);
    return size;
  }
  void close(const char* what, double actual, double expected, double size, double rounded = 0) const {
    if (!(abs(actual - expected) <= rate_ * size + rounded + (size > 0 ? kTiny : 0))) wrong(what);
  }
  void potentials(const char* what, const Tensor& actual, int64_t width, const Vector& expected) const {
    for (int64_t i = 0; i < width; ++i) {
      const double x = i < int64_t(expected.size()) ? p_.eps * expected[size_t(i)] : -INFINITY;
      const double y = actual[problem_ * width + i];
      if (x == -INFINITY ? y != x : !(abs(y - x) <= rate_ * (p_.eps + abs(x)))) wrong(what);
    }
  }
  void vector(const char* what, const Tensor& actual, int64_t width, const Sums& expected) const {
    const double size = largest(expected);
    for (int64_t i = 0; i < width; ++i) {
      const bool inside = i < int64_t(expected.size());
      close(what, actual[problem_ * width + i], inside ? expected[size_t(i)].value : 0, inside ? size : 0);
    }
  }

  const kd::SinkhornCall& call_;
  const int64_t problem_;
  const Problem& p_;
  const Truth truth_;
  const int64_t last_;
  double rate_;
};

void one_call() {
  kd::SinkhornCall call{};
  kd::SinkhornProblems& of = call.of;
  of.problems = uniform(0, 3);
  of.rows = size();
  of.columns = size();
  of.iterations = chance(0.1) ? uniform(20, 60) : uniform(1, 10);
  of.entropic = chance(0.5);
  const auto dtype = static_cast<kd::DType>(uniform(0, 3));
  const kd::DType real = real_of(dtype);
  const int64_t row_stride = of.columns + (chance(0.5) ? uniform(0, 9) : 0);
  of.cost = {{nullptr, row_stride, dtype}, of.rows * row_stride + (chance(0.5) ? uniform(0, 9) : 0)};
  const bool any = of.problems > 0 && of.rows > 0 && of.columns > 0;
  const int64_t rows = of.problems * of.rows, columns = of.problems * of.columns, pairs = rows * of.columns;
  Tensor cost(any ? (of.problems - 1) * of.cost.stride + (of.rows - 1) * row_stride + of.columns : 0, dtype);
  Tensor a(rows, real), b(columns, real), start(columns, real), eps(of.problems, kd::DType::kFloat64);
  Tensor lengths(2 * of.problems, kInteger);
  of.cost.first.data = cost.data;
  of.eps = static_cast<const double*>(eps.data);
  of.a = a.if_wanted(chance(0.7));
  of.b = b.if_wanted(chance(0.7));
  of.lengths = static_cast<const int64_t*>(lengths.if_wanted(chance(0.4)));
  call.start = start.if_wanted(chance(0.3));
  call.tolerance = chance(0.4) ? std::pow(10.0, -double(uniform(1, 4))) : chance(0.2) ? 0 : -1;

  std::vector<Problem> problems(static_cast<size_t>(of.problems));
  bool spoilt = false;
  for (int64_t k = 0; k < of.problems; ++k) {
    Problem& p = problems[size_t(k)];
    p.content = static_cast<Content>(uniform(0, 5));
    p.n = of.lengths ? uniform(0, of.rows) : of.rows;
    p.m = of.lengths ? uniform(0, of.columns) : of.columns;
    static_cast<int64_t*>(lengths.data)[2 * k] = p.n;
    static_cast<int64_t*>(lengths.data)[2 * k + 1] = p.m;
    p.eps = eps.set(k, eps_of(p.content));
    const auto mass = [&](bool ones) {
      return ones ? 1.0 : chance(0.15) ? 0.0 : std::exp(std::normal_distribution<>()(g_random));
    };
    for (int64_t i = 0; i < p.n; ++i) p.a.push_back(a.set(k * of.rows + i, mass(!of.a)));
    for (int64_t j = 0; j < p.m; ++j)
      p.b.push_back(b.set(k * of.columns + j, mass(!of.b || p.content == Content::kBlocks)));
    for (int64_t j = 0; j < p.m; ++j) {
      const double h = start.set(k * of.columns + j, chance(0.1) ? -INFINITY : std::normal_distribution<>()(g_random));
      p.start.push_back(call.start && h > -INFINITY ? h : 0);
    }
    bool has_nan = false;
    for (int64_t i = 0; i < p.n; ++i) {
      for (int64_t j = 0; j < p.m; ++j) {
        p.cost.push_back(0);
        if (!p.counts(i, j)) continue;
        const bool spoil = p.content == Content::kNan && (!has_nan || chance(0.01));
        const double c = spoil ? (chance(0.5) ? NAN : -INFINITY) : cost_of(p.content, i, j, p.m);
        p.cost.back() = cost.set(k * of.cost.stride + i * row_stride + j, c);
        has_nan |= spoil;
      }
    }
    if (!has_nan && p.content == Content::kNan) p.content = Content::kOrdinary;
    spoilt |= has_nan;
  }

  const bool with_history = chance(0.7), with_plan = chance(0.6);
  Tensor value(of.problems, real), f(rows, real), g(columns, real), plan(pairs, real), run(of.problems, kInteger);
  Tensor error(of.problems, real), history(of.iterations * (rows + columns), real);
  Tensor offsets(3 * (rows + columns), kd::DType::kFloat64);
  call.value = value.data;
  call.f = f.data;
  call.g = g.data;
  call.plan = plan.if_wanted(with_plan);
  call.run = static_cast<int64_t*>(run.data);
  call.error = error.data;
  call.history = history.if_wanted(with_history);
  call.offsets = static_cast<double*>(offsets.if_wanted(with_history));
  kd::limit_simd(static_cast<kd::Simd>(uniform(0, 2)));
  on_threads(kd::run_sinkhorn, call);

  for (int64_t k = 0; k < of.problems; ++k) {
    const Problem& p = problems[size_t(k)];
    if (p.content == Content::kNan) {
      if (!std::isnan(value[k])) fail("value of NaN costs", of, k);
      continue;
    }
    const Check check(call, k, p);
    check.iterations();
    check.results(value, error, f, g, with_plan ? &plan : nullptr);
  }
  if (!with_history) return;
  for (int64_t i = 0; i < of.iterations * (rows + columns); ++i)
    if (!spoilt && std::isnan(history[i])) fail("history", of, 0);
  for (int64_t i = 0; i < 3 * (rows + columns); ++i)
    if (!spoilt && std::isnan(offsets[i])) fail("offsets", of, 0);

  Tensor upstream(of.problems, real), plan_upstream(pairs, real);
  Tensor cost_gradient(pairs, dtype), a_gradient(rows, real), b_gradient(columns, real);
  const bool with_plan_upstream = chance(0.5), of_cost = chance(0.8), of_a = chance(0.8), of_b = chance(0.8);
  kd::SinkhornBackwardCall back{};
  back.of = of;
  back.upstream = upstream.data;
  back.plan_upstream = plan_upstream.if_wanted(with_plan_upstream);
  back.run = call.run;
  back.history = call.history;
  back.offsets = call.offsets;
  back.cost_gradient = cost_gradient.if_wanted(of_cost);
  back.a_gradient = a_gradient.if_wanted(of_a);
  back.b_gradient = b_gradient.if_wanted(of_b);
  std::vector<Vector> of_plans(problems.size());
  for (int64_t k = 0; k < of.problems; ++k) {
    const Problem& p = problems[size_t(k)];
    upstream.set(k, chance(0.2) ? 0 : std::normal_distribution<>()(g_random));
    for (int64_t i = 0; i < p.n; ++i) {
      for (int64_t j = 0; j < p.m; ++j) {
        const double x = plan_upstream.set((k * of.rows + i) * of.columns + j, std::normal_distribution<>()(g_random));
        of_plans[size_t(k)].push_back(with_plan_upstream ? x : 0);
      }
    }
  }
  on_threads(kd::run_sinkhorn_backward, back);
  for (int64_t k = 0; k < of.problems; ++k) {
    if (problems[size_t(k)].content == Content::kNan) continue;
    Check(call, k, problems[size_t(k)])
        .gradients(upstream[k], of_plans[size_t(k)], of_cost ? &cost_gradient : nullptr, of_a ? &a_gradient : nullptr,
                   of_b ? &b_gradient : nullptr);
  }
}

}  // namespace

int main(int argc, char** argv) {
  g_random.seed(argc > 1 ? std::strtoull(argv[1], nullptr, 10) : 0);
  const int64_t calls = argc > 2 ? std::strtoll(argv[2], nullptr, 10) : 1000;
  for (int64_t i = 0; i < calls; ++i) one_call();
  std::printf("%lld calls\n", static_cast<long long>(calls));
}
