// The derivative of the iterations that were run, exactly, from the scalings of each.
//
// With G = dL/dP and M = G * P the reverse of iteration t, in the frame of its scalings, is
//
//   columns:  y' = y beta       alpha -= rho (K y')       b_gradient += beta     K-gradient += x y'^T
//   rows:     x' = x alpha      beta = -sigma (K^T x')    a_gradient += alpha    K-gradient += x' y^T
//
// where alpha and beta are the gradients of log x and log y per unit of mass, so that they stay finite where a mass
// goes to 0, and y, sigma in the second line belong to iteration t - 1. At first alpha = rho (G K y), beta = sigma (G^T
// K x). The gradient of the cost is P dV - (M - K * K-gradient) / eps: a matrix of rank 2T instead of 2T matrices.
#pragma once

#include <type_traits>

#include "kd/elementary.h"
#include "sinkhorn_frame.h"

KD_BEGIN

template <class F, class T> class SinkhornReverse {
  using S = ScalarOf<F>;
  static constexpr int kLanes = Traits<F>::kLanes;

 public:
  SinkhornReverse(const SinkhornBackwardCall& call, int64_t problem, void* scratch)
      : call_(call), problem_(problem), carver_(scratch), frame_(call.of, problem, &carver_) {
    const int64_t rows = sinkhorn_pitch(call.of.rows), columns = sinkhorn_pitch(call.of.columns);
    total_ = carver_.template take<S>(call.of.rows * columns);
    x_ = carver_.template take<S>(rows);
    alpha_ = carver_.template take<S>(rows);
    f_ = carver_.template take<S>(rows);
    a_gradient_ = carver_.template take<S>(rows);
    y_ = carver_.template take<S>(columns);
    beta_ = carver_.template take<S>(columns);
    g_ = carver_.template take<S>(columns);
    b_gradient_ = carver_.template take<S>(columns);
    sums_ = carver_.template take<S>(columns);
    center_ = carver_.template take<S>(columns);
    row_terms_ = carver_.template take<S>(kSinkhornTerms * rows);
    column_terms_ = carver_.template take<S>(kSinkhornTerms * columns);
    upstream_ = static_cast<const S*>(call.upstream)[problem];
  }

  void run() {
    const int64_t n = frame_.n, last = call_.run[problem_];
    std::fill(a_gradient_, a_gradient_ + n, S(0));
    jumped_ = frames_differ();
    take_offsets(2);
    // Offsets that were taken anew before the iterations stopped early hold the last scalings already.
    if (last < call_.of.iterations && absorbed_after(last)) release(last);
    enter(last);
    begin(last);
    for (int64_t t = last; t >= 1; --t) reverse(t);
    flush();
    write();
  }

 private:
  const S* rho(int64_t t) const {
    return static_cast<const S*>(call_.history) +
           (problem_ * call_.of.iterations + t - 1) * (call_.of.rows + call_.of.columns);
  }
  const S* sigma(int64_t t) const { return rho(t) + call_.of.rows; }
  const double* offsets(int64_t slot) const {
    return call_.offsets + (problem_ * 3 + slot) * (call_.of.rows + call_.of.columns);
  }

  void take_offsets(int64_t slot) {
    std::copy(offsets(slot), offsets(slot) + frame_.n, frame_.row_offset);
    std::copy(offsets(slot) + call_.of.rows, offsets(slot) + call_.of.rows + frame_.m, frame_.column_offset);
  }

  bool frames_differ() const {  // A and B
    return !std::equal(offsets(0), offsets(0) + frame_.n, offsets(1)) ||
           !std::equal(offsets(0) + call_.of.rows, offsets(0) + call_.of.rows + frame_.m, offsets(1) + call_.of.rows);
  }

  // Whether iteration t scaled its columns in frame B, where rho is part of the offsets.
  bool in_second_frame(int64_t t) const { return t == 1 && jumped_; }

  // rho of row i beside the columns of iteration t.
  S row_scaling(int64_t t, int64_t i) const { return relative(rho(t)[i], in_second_frame(t)); }

  bool absorbed_after(int64_t t) const { return frame_.has_drifted(rho(t), sigma(t)); }

  // From the frame after iteration t to its own, where the scalings were absorbed in between.
  void release(int64_t t) {
    if (t == 1) {
      take_offsets(1);  // exactly, whatever was rounded on the way
    } else {
      frame_.absorb_rows(rho(t), -1);
      frame_.absorb_columns(sigma(t), -1);
    }
  }

  // K, x and y of iteration t.
  void enter(int64_t t) {
    frame_.build();
    frame_.scale(frame_.a, rho(t), in_second_frame(t), frame_.n, x_);
    frame_.scale(frame_.b, sigma(t), false, frame_.m, y_);
    std::fill(y_ + frame_.m, y_ + frame_.pitch, S(0));
  }

  // total = dV P - M / eps, alpha = rho (G K y), beta = sigma (G^T K x), all with the columns of G centred.
  void begin(int64_t last) {
    const int64_t n = frame_.n, m = frame_.m, pitch = frame_.pitch;
    if (call_.of.entropic) {
      take_potentials(frame_.row_offset, x_, n, f_);
      take_potentials(frame_.column_offset, y_, m, g_);
      std::fill(g_ + m, g_ + pitch, S(0));
    }
    // The derivative of the last column scaling is the mean of G in its column. What G has in common there changes
    // nothing else, and is taken off first: beside costs of thousands of eps the rest would lose its digits.
    const S* column_scaling = sigma(last);
    std::fill(center_, center_ + pitch, S(0));
    std::fill(beta_, beta_ + pitch, S(0));
    for (int64_t i = 0; i < n; ++i) add_to_means(i);
    for (int64_t j = 0; j < m; ++j) {
      center_[j] = beta_[j] * column_scaling[j];
      b_gradient_[j] = center_[j];
    }
    std::fill(beta_, beta_ + pitch, S(0));
    for (int64_t i = 0; i < n; ++i) {
      alpha_[i] = row_scaling(last, i) * begin_row(i);
    }
    for (int64_t j = 0; j < m; ++j) beta_[j] *= column_scaling[j];
  }

  const S* plan_upstream_row(int64_t i) const {
    const S* all = static_cast<const S*>(call_.plan_upstream);
    return all ? all + (problem_ * call_.of.rows + i) * call_.of.columns : nullptr;
  }

  // (G_ij - center_j) K_ij for a register of columns. An infinite cost has no part.
  F weighted_derivative(int64_t i, int64_t j, const T* c, const S* plan_upstream, F kernel) const {
    const int count = int(std::min<int64_t>(kLanes, frame_.m - j));
    const F v(upstream_), zero(S(0));
    F g = zero;
    if (call_.of.entropic) {
      g = v * (F(f_[i]) + Lanes<F>::load(g_ + j));
    } else {
      g = v * (count == kLanes ? Lanes<F>::load(c + j) : Lanes<F>::load(c + j, count, S(0)));
    }
    if (plan_upstream) {
      g = g + (count == kLanes ? Lanes<F>::load(plan_upstream + j) : Lanes<F>::load(plan_upstream + j, count, S(0)));
    }
    return select(kernel == zero, zero, (g - Lanes<F>::load(center_ + j)) * kernel);
  }

  void add_to_means(int64_t i) {
    const S* k = frame_.k + i * frame_.pitch;
    const F x(x_[i]);
    for (int64_t j = 0; j < frame_.m; j += kLanes) {
      const F weighted = weighted_derivative(i, j, frame_.cost_row(i), plan_upstream_row(i), Lanes<F>::load(k + j));
      Lanes<F>::store(beta_ + j, fma(weighted, x, Lanes<F>::load(beta_ + j)));
    }
  }

  S begin_row(int64_t i) {
    const S* k = frame_.k + i * frame_.pitch;
    const F x(x_[i]), v(upstream_), inverse_eps(S(1.0 / frame_.eps));
    F sum(S(0));
    for (int64_t j = 0; j < frame_.m; j += kLanes) {
      const F kernel = Lanes<F>::load(k + j), y = Lanes<F>::load(y_ + j);
      const F weighted = weighted_derivative(i, j, frame_.cost_row(i), plan_upstream_row(i), kernel);
      sum = fma(weighted, y, sum);
      Lanes<F>::store(beta_ + j, fma(weighted, x, Lanes<F>::load(beta_ + j)));
      Lanes<F>::store(total_ + i * frame_.pitch + j, x * y * (v * kernel - weighted * inverse_eps));
    }
    return S(reduce_add(sum));
  }

  void reverse(int64_t t) {
    if (terms_ + 2 > kSinkhornTerms) flush();
    for (int64_t j = 0; j < frame_.m; ++j) b_gradient_[j] += beta_[j];
    S* rows = row_term();
    S* columns = column_term();
    ++terms_;
    std::copy(x_, x_ + frame_.n, rows);
    for (int64_t j = 0; j < frame_.pitch; ++j) columns[j] = y_[j] * beta_[j];
    S* next_rows = nullptr;
    if (in_second_frame(t)) {
      // The columns were scaled in frame B, the rows in frame A.
      frame_.sweep(columns, sums_, [&](int64_t i, int count, const S* sums, S* w) KD_LAMBDA {
        for (int r = 0; r < count; ++r) {
          alpha_[i + r] -= row_scaling(t, i + r) * sums[r];
          w[r] = S(0);
        }
      });
      flush();
      take_offsets(0);
      frame_.build();
      frame_.scale(frame_.a, rho(1), false, frame_.n, x_);
      next_rows = row_term();
      for (int64_t i = 0; i < frame_.n; ++i) next_rows[i] = take_alpha(i);
    } else {
      const S* scaling = rho(t);
      next_rows = row_term();
      frame_.sweep(columns, sums_, [&](int64_t i, int count, const S* sums, S* w) KD_LAMBDA {
        for (int r = 0; r < count; ++r) alpha_[i + r] -= scaling[i + r] * sums[r];
        for (int r = 0; r < count; ++r) next_rows[i + r] = w[r] = take_alpha(i + r);
      });
    }
    // The rows of iteration t were scaled against the columns of t - 1.
    const bool absorbed = t > 1 && absorbed_after(t - 1);
    if (t == 1) {
      for (int64_t j = 0; j < frame_.pitch; ++j) y_[j] = frame_.b[j] > S(0) ? S(1) : S(0);
    } else {
      const S* scaling = sigma(t - 1);
      frame_.scale(frame_.b, scaling, absorbed, frame_.m, y_);
      for (int64_t j = 0; j < frame_.m; ++j) beta_[j] = -relative(scaling[j], absorbed) * sums_[j];
    }
    std::copy(y_, y_ + frame_.pitch, column_term());
    ++terms_;
    if (absorbed) {
      flush();
      release(t - 1);
      enter(t - 1);
    } else if (t > 1) {
      frame_.scale(frame_.a, rho(t - 1), in_second_frame(t - 1), frame_.n, x_);
    }
  }

  S* row_term() { return row_terms_ + terms_ * sinkhorn_pitch(frame_.n); }
  S* column_term() { return column_terms_ + terms_ * frame_.pitch; }

  // The gradient that row i has gathered, which becomes x' = x alpha.
  S take_alpha(int64_t i) {
    const S gathered = alpha_[i];
    alpha_[i] = S(0);
    a_gradient_[i] += gathered;
    return x_[i] * gathered;
  }

  // total += K * (sum of the terms) / eps.
  void flush() {
    int64_t i = 0;
    for (; i + 4 <= frame_.n; i += 4) flush_rows<4>(i);
    for (; i < frame_.n; ++i) flush_rows<1>(i);
    terms_ = 0;
  }

  template <int Rows> void flush_rows(int64_t i) {
    constexpr int kRegisters = 4;
    const F inverse_eps(S(1.0 / frame_.eps));
    const int64_t row_pitch = sinkhorn_pitch(frame_.n);
    int64_t j = 0;
    const auto columns = [&](auto registers) {
      constexpr int kCount = decltype(registers)::value;
      F sum[Rows][kCount];
      for (auto& row : sum)
        for (F& s : row) s = F(S(0));
      for (int64_t t = 0; t < terms_; ++t) {
        const S* right = column_terms_ + t * frame_.pitch + j;
        const S* left = row_terms_ + t * row_pitch + i;
        F factor[kCount];
        for (int c = 0; c < kCount; ++c) factor[c] = Lanes<F>::load(right + c * kLanes);
        for (int r = 0; r < Rows; ++r)
          for (int c = 0; c < kCount; ++c) sum[r][c] = fma(F(left[r]), factor[c], sum[r][c]);
      }
      for (int r = 0; r < Rows; ++r) {
        for (int c = 0; c < kCount; ++c) {
          const int64_t at = (i + r) * frame_.pitch + j + c * kLanes;
          const F kernel = Lanes<F>::load(frame_.k + at) * inverse_eps;
          Lanes<F>::store(total_ + at, fma(kernel, sum[r][c], Lanes<F>::load(total_ + at)));
        }
      }
      j += kCount * kLanes;
    };
    while (j + kRegisters * kLanes <= frame_.pitch) columns(std::integral_constant<int, kRegisters>());
    while (j < frame_.pitch) columns(std::integral_constant<int, 1>());
  }

  // 0 where nothing is sent: no entry of K is left there.
  void take_potentials(const double* offset, const S* scaling, int64_t count, S* out) const {
    for (int64_t i = 0; i < count; ++i) {
      out[i] = scaling[i] > S(0) ? S(offset[i] + frame_.eps * std::log(double(scaling[i]))) : S(0);
    }
  }

  void write() const {
    const int64_t rows = call_.of.rows, columns = call_.of.columns;
    if (call_.cost_gradient) {
      T* out = static_cast<T*>(call_.cost_gradient) + problem_ * rows * columns;
      for (int64_t i = 0; i < rows; ++i, out += columns) {
        const int64_t count = i < frame_.n ? frame_.m : 0;
        const S* row = total_ + i * frame_.pitch;
        for (int64_t j = 0; j < count; ++j) narrow(row[j], out + j);
        for (int64_t j = count; j < columns; ++j) narrow(S(0), out + j);
      }
    }
    write_vector(a_gradient_, frame_.n, rows, call_.a_gradient);
    write_vector(b_gradient_, frame_.m, columns, call_.b_gradient);
  }

  void write_vector(const S* x, int64_t count, int64_t width, void* out) const {
    if (!out) return;
    S* at = static_cast<S*>(out) + problem_ * width;
    std::copy(x, x + count, at);
    std::fill(at + count, at + width, S(0));
  }

  const SinkhornBackwardCall& call_;
  const int64_t problem_;
  Carver<S> carver_;
  Frame<F, T> frame_;
  S upstream_;
  bool jumped_ = false;  // from frame A to frame B, in the first iteration
  S* total_;             // gradient of the cost, [n][pitch]
  S *x_, *alpha_, *f_, *a_gradient_, *y_, *beta_, *g_, *b_gradient_, *sums_, *center_;
  S *row_terms_, *column_terms_;
  int64_t terms_ = 0;  // gathered since the last flush
};

template <class F, class T> void reverse_sinkhorn(const SinkhornBackwardCall& call, int64_t problem, void* scratch) {
  SinkhornReverse<F, T>(call, problem, scratch).run();
}

KD_END
