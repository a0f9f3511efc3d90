// Sinkhorn iterations of one problem, and the plan they end with.
#pragma once

#include "kd/elementary.h"
#include "sinkhorn_frame.h"

KD_BEGIN

template <class F, class T> class SinkhornSolver {
  using S = ScalarOf<F>;
  static constexpr int kLanes = Traits<F>::kLanes;
  static constexpr double kInfinity = std::numeric_limits<double>::infinity();

 public:
  SinkhornSolver(const SinkhornCall& call, int64_t problem, void* scratch)
      : call_(call), problem_(problem), carver_(scratch), frame_(call.of, problem, &carver_) {
    const int64_t rows = sinkhorn_pitch(call.of.rows), columns = sinkhorn_pitch(call.of.columns);
    x_ = carver_.template take<S>(rows);
    next_x_ = carver_.template take<S>(rows);
    rho_ = carver_.template take<S>(rows);
    row_sums_ = carver_.template take<S>(rows);
    y_ = carver_.template take<S>(columns);
    sigma_ = carver_.template take<S>(columns);
    sums_ = carver_.template take<S>(columns);
  }

  void run() {
    begin();
    const double mass = frame_.mass();
    int64_t t = 0;
    for (; t < call_.of.iterations; ++t) {
      double misplaced = 0;
      const bool watched = t > 0 && call_.tolerance >= 0;
      frame_.sweep(y_, sums_, [&](int64_t i, int count, const S* sums, S* w) KD_LAMBDA {
        for (int r = 0; r < count; ++r) rho_[i + r] = reciprocal_of_sum(sums[r]);
        for (int r = 0; r < count; ++r) next_x_[i + r] = w[r] = frame_.a[i + r] * rho_[i + r];
        for (int r = 0; watched && r < count; ++r)
          misplaced += std::abs(double(x_[i + r]) * double(sums[r]) - double(frame_.a[i + r]));
      });
      if (watched && misplaced <= call_.tolerance * mass) break;  // with the plan of the iteration before
      std::swap(x_, next_x_);
      const bool far = t == 0 && has_far_column();
      if (far) jump();
      if (t == 0) keep_offsets(1);
      scale_columns();
      keep_history(t);
      if (t + 1 < call_.of.iterations && frame_.has_drifted(rho_, sigma_)) absorb(far);
    }
    call_.run[problem_] = t;
    clear_history(t);
    keep_offsets(2);
    finish(mass);
  }

 private:
  void begin() {
    const S* start = static_cast<const S*>(call_.start);
    for (int64_t j = 0; j < frame_.m; ++j) {
      const double h = start ? double(start[problem_ * call_.of.columns + j]) : 0.0;
      frame_.column_offset[j] = std::abs(h) < kInfinity ? h : 0.0;
    }
    for (int64_t j = 0; j < frame_.pitch; ++j) y_[j] = frame_.b[j] > S(0) ? S(1) : S(0);
    frame_.take_row_minima();
    frame_.build();
    keep_offsets(0);
  }

  bool has_far_column() const {
    for (int64_t j = 0; j < frame_.m; ++j)
      if (frame_.b[j] > S(0) && sums_[j] < ScalingLimits<S>::kFar) return true;
    return false;
  }

  // From frame A to frame B.
  void jump() {
    frame_.absorb_rows(rho_);
    frame_.scale(frame_.a, rho_, true, frame_.n, x_);
    frame_.take_column_minima(x_);
    frame_.build();
    frame_.sweep(y_, sums_,
                 [&](int64_t i, int count, const S*, S* w) KD_LAMBDA { std::copy(x_ + i, x_ + i + count, w); });
  }

  void scale_columns() {
    for (int64_t j = 0; j < frame_.pitch; j += kLanes) {
      const F sum = Lanes<F>::load(sums_ + j), one(S(1)), zero(S(0));
      const F sigma = select(sum < F(ScalingLimits<S>::kNothing), zero, one / sum);
      Lanes<F>::store(sigma_ + j, sigma);
      Lanes<F>::store(y_ + j, Lanes<F>::load(frame_.b + j) * sigma);
    }
  }

  void absorb(bool rows_are_absorbed) {
    if (!rows_are_absorbed) frame_.absorb_rows(rho_);
    frame_.absorb_columns(sigma_);
    frame_.scale(frame_.a, rho_, true, frame_.n, x_);
    frame_.scale(frame_.b, sigma_, true, frame_.m, y_);
    frame_.build();
  }

  void keep_history(int64_t t) {
    if (!call_.history) return;
    const int64_t width = call_.of.rows + call_.of.columns;
    S* at = static_cast<S*>(call_.history) + (problem_ * call_.of.iterations + t) * width;
    keep(rho_, frame_.n, call_.of.rows, at);
    keep(sigma_, frame_.m, call_.of.columns, at + call_.of.rows);
  }

  void clear_history(int64_t t) {
    if (!call_.history) return;
    const int64_t width = call_.of.rows + call_.of.columns;
    S* begin = static_cast<S*>(call_.history) + problem_ * call_.of.iterations * width;
    std::fill(begin + t * width, begin + call_.of.iterations * width, S(0));
  }

  void keep_offsets(int64_t slot) {
    if (!call_.offsets) return;
    double* at = call_.offsets + (problem_ * 3 + slot) * (call_.of.rows + call_.of.columns);
    keep(frame_.row_offset, frame_.n, call_.of.rows, at);
    keep(frame_.column_offset, frame_.m, call_.of.columns, at + call_.of.rows);
  }

  template <class X> static void keep(const X* x, int64_t count, int64_t width, X* out) {
    std::copy(x, x + count, out);
    std::fill(out + count, out + width, X(0));
  }

  // Plan, value, potentials and marginal error.
  void finish(double mass) {
    const int64_t rows = call_.of.rows, columns = call_.of.columns;
    S* plan = call_.plan ? static_cast<S*>(call_.plan) + problem_ * rows * columns : nullptr;
    S* f = static_cast<S*>(call_.f) + problem_ * rows;
    S* g = static_cast<S*>(call_.g) + problem_ * columns;
    std::fill(sums_, sums_ + frame_.pitch, S(0));
    double carried = 0, misplaced = 0, sent = 0;
    for (int64_t i = 0; i < frame_.n; ++i) {
      const double transport = plan_row(i, plan ? plan + i * columns : nullptr);
      carried += transport;
      sent += double(row_sums_[i]);
      misplaced += std::abs(double(row_sums_[i]) - double(frame_.a[i]));
    }
    if (plan) {
      for (int64_t i = 0; i < rows; ++i) {
        const int64_t begin = i < frame_.n ? frame_.m : 0;
        std::fill(plan + i * columns + begin, plan + (i + 1) * columns, S(0));
      }
    }
    potentials(frame_.row_offset, x_, frame_.n, rows, rho_, f);
    potentials(frame_.column_offset, y_, frame_.m, columns, sigma_, g);
    // <P, C> + eps <P, log P - 1> with C + eps log P = f + g, whose sums are over rows and columns alone.
    if (call_.of.entropic)
      carried = linear_form(f, row_sums_, frame_.n) + linear_form(g, sums_, frame_.m) - frame_.eps * sent;
    static_cast<S*>(call_.value)[problem_] = S(carried);
    static_cast<S*>(call_.error)[problem_] = S(mass > 0 ? misplaced / mass : 0.0);
  }

  // One row of P, into `out` where it is wanted: its sum, its part of <P, C>, and the sums of columns. An entry that is
  // 0 has no cost, not even an infinite one; NaN stays.
  double plan_row(int64_t i, S* out) {
    const T* c = frame_.cost_row(i);
    const S* k = frame_.k + i * frame_.pitch;
    const F x(x_[i]), zero(S(0));
    F row = zero, transport = zero;
    for (int64_t j = 0; j < frame_.m; j += kLanes) {
      const int count = int(std::min<int64_t>(kLanes, frame_.m - j));
      const F p = x * Lanes<F>::load(k + j) * Lanes<F>::load(y_ + j);
      const F z = count == kLanes ? Lanes<F>::load(c + j) : Lanes<F>::load(c + j, count, S(0));
      row = row + p;
      transport = transport + select(p == zero, zero, p * z);
      if (call_.of.entropic) Lanes<F>::store(sums_ + j, Lanes<F>::load(sums_ + j) + p);
      if (out && count == kLanes) Lanes<F>::store(out + j, p);
      if (out && count < kLanes) Lanes<F>::store(out + j, p, count);
    }
    row_sums_[i] = S(reduce_add(row));
    return double(reduce_add(transport));
  }

  // offset + eps log scaling; -inf for 0, and beyond the problem. `logarithms` is room for as many as `scaling` has, in
  // whole registers.
  void potentials(const double* offset, const S* scaling, int64_t count, int64_t width, S* logarithms, S* out) {
    constexpr S kLeast = std::numeric_limits<S>::min();  // of numbers that `log` takes
    for (int64_t i = 0; i < count; i += kLanes)
      Lanes<F>::store(logarithms + i, log(max(Lanes<F>::load(scaling + i), F(kLeast))));
    for (int64_t i = 0; i < count; ++i) {
      const double logarithm = scaling[i] >= kLeast ? double(logarithms[i]) : std::log(double(scaling[i]));
      out[i] = S(offset[i] + frame_.eps * logarithm);
    }
    std::fill(out + count, out + width, -std::numeric_limits<S>::infinity());
  }

  static double linear_form(const S* potential, const S* sums, int64_t count) {
    double total = 0;
    for (int64_t i = 0; i < count; ++i)
      if (sums[i] != S(0)) total += double(potential[i]) * double(sums[i]);
    return total;
  }

  const SinkhornCall& call_;
  const int64_t problem_;
  Carver<S> carver_;
  Frame<F, T> frame_;
  S *x_, *next_x_, *rho_, *row_sums_, *y_, *sigma_, *sums_;
};

template <class F, class T> void solve_sinkhorn(const SinkhornCall& call, int64_t problem, void* scratch) {
  SinkhornSolver<F, T>(call, problem, scratch).run();
}

KD_END
