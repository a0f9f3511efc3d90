// Sinkhorn iterations run on scalings x, y of a kernel matrix into which most of the potentials are absorbed (Schmitzer
// 2016, "Stabilized Sparse Scaling Algorithms"):
//
//   K_ij = exp((F_i + H_j - C_ij) / eps),   P_ij = x_i K_ij y_j,   x = a / (K y),   y = b / (K^T x)
//
// A frame is K with its offsets F, H, which are double: with small eps the potentials are thousands of eps, and float
// would lose what is left of them beside C. Scalings stay near the marginals: x = a rho and y = b sigma with rho, sigma
// in [1 / kDrift, kDrift], otherwise their logarithms go into new offsets and K is built anew. From one iteration to
// the next they change by no more than the number of entries times the ratio of the masses, as the plan's rows (or
// columns) have just been scaled to their marginal, so nothing overflows in between. The first iteration alone, which
// starts from nothing, may have to go further: a column that no row prefers would underflow in the frame of the row
// minima (A), and gets one of its own column minima (B).
//
// For the backward pass `history` keeps rho and sigma of each iteration and `offsets` the frames A, B and the last one.
// The frames between follow from rho and sigma.
#pragma once

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <limits>

#include "kd/sinkhorn.h"
#include "sinkhorn.h"
#include "storage.h"

KD_BEGIN

template <class S> class Carver {  // of scratch into arrays on cache lines
 public:
  explicit Carver(void* scratch) : at_(static_cast<char*>(scratch)) {}
  template <class X> X* take(int64_t count) {
    X* p = reinterpret_cast<X*>(at_);
    at_ += size_t(count) * sizeof(X);
    return p;
  }

 private:
  char* at_;
};

template <class F, class T> struct Frame {
  using S = ScalarOf<F>;
  static constexpr int kLanes = Traits<F>::kLanes;

  int64_t n, m, pitch;  // pitch: columns in whole cache lines; K and vectors of columns are 0 from m on
  const T* cost;
  int64_t cost_stride;
  double eps;
  S* k;                                // [n][pitch]
  S *a, *b;                            // masses [n], [pitch]
  double *row_offset, *column_offset;  // F, H

  Frame(const SinkhornProblems& of, int64_t problem, Carver<S>* carver)
      : n(of.lengths ? of.lengths[2 * problem] : of.rows),
        m(of.lengths ? of.lengths[2 * problem + 1] : of.columns),
        pitch(sinkhorn_pitch(m)),
        cost(static_cast<const T*>(of.cost.first.data) + problem * of.cost.stride),
        cost_stride(of.cost.first.row_stride),
        eps(of.eps[problem]) {
    k = carver->template take<S>(of.rows * sinkhorn_pitch(of.columns));
    a = carver->template take<S>(sinkhorn_pitch(of.rows));
    b = carver->template take<S>(sinkhorn_pitch(of.columns));
    row_offset = carver->template take<double>(sinkhorn_pitch(of.rows));
    column_offset = carver->template take<double>(sinkhorn_pitch(of.columns));
    load_masses(of.a, problem * of.rows, n, sinkhorn_pitch(n), a);
    load_masses(of.b, problem * of.columns, m, pitch, b);
  }

  const T* cost_row(int64_t i) const { return cost + i * cost_stride; }

  double mass() const {
    double sum = 0;
    for (int64_t i = 0; i < n; ++i) sum += double(a[i]);
    return sum;
  }

  // K from the offsets. Rows and columns without mass are not read and stay 0.
  void build() {
    const bool plain = columns_are_plain();
    for (int64_t i = 0; i < n; ++i) {
      S* row = k + i * pitch;
      if (!(a[i] > S(0))) {
        std::fill(row, row + pitch, S(0));
      } else if (plain && double(S(row_offset[i])) == row_offset[i]) {
        build_row_from_minimum(cost_row(i), S(row_offset[i]), row);
      } else {
        build_row(cost_row(i), row_offset[i], row);
      }
    }
  }

  // sums = K^T w in one read of K: weights(i, count, (K y)_i..., w_i...) gives those of a few rows.
  template <class Weights> void sweep(const S* y, S* sums, Weights weights) const {
    std::fill(sums, sums + pitch, S(0));
    int64_t i = 0;
    for (; i + 8 <= n; i += 8) sweep_rows<8>(i, y, sums, weights);
    for (; i < n; ++i) sweep_rows<1>(i, y, sums, weights);
  }

  // F_i = min_j (C_ij - H_j) over the columns with mass; 0 where a row reaches none.
  void take_row_minima() {
    const bool plain = columns_are_plain();
    for (int64_t i = 0; i < n; ++i) {
      row_offset[i] = 0;
      if (!(a[i] > S(0))) continue;
      const double least = plain ? row_minimum(cost_row(i)) : offset_row_minimum(cost_row(i));
      if (least < std::numeric_limits<double>::infinity()) row_offset[i] = least;
    }
  }

  // H_j = min_i (C_ij - F_i) over the rows that send something; 0 where a column gets nothing.
  void take_column_minima(const S* x) {
    constexpr double kInfinity = std::numeric_limits<double>::infinity();
    std::fill(column_offset, column_offset + m, kInfinity);
    for (int64_t i = 0; i < n; ++i) {
      if (!(x[i] > S(0))) continue;
      const T* c = cost_row(i);
      for (int64_t j = 0; j < m; ++j) {
        const double d = double(widen(c[j])) - row_offset[i];
        column_offset[j] = d < column_offset[j] ? d : column_offset[j];
      }
    }
    for (int64_t j = 0; j < m; ++j)
      if (!(std::abs(column_offset[j]) < kInfinity)) column_offset[j] = 0;
  }

  // Scalings into offsets: x = a rho becomes x = a, and y likewise. Direction -1 goes back.
  void absorb_rows(const S* rho, double direction = 1) { absorb(rho, n, direction, row_offset); }
  void absorb_columns(const S* sigma, double direction = 1) { absorb(sigma, m, direction, column_offset); }

  // mass scaling, or the mass itself where the scaling is absorbed; 0 where it is 0.
  static void scale(const S* mass, const S* scaling, bool absorbed, int64_t count, S* out) {
    for (int64_t i = 0; i < count; ++i) out[i] = scaled(mass[i], scaling[i], absorbed);
  }

  // Whether a scaling of a row or column with mass asks for new offsets.
  bool has_drifted(const S* rho, const S* sigma) const { return drifted(a, rho, n) || drifted(b, sigma, m); }

 private:
  static void load_masses(const void* masses, int64_t begin, int64_t count, int64_t padded, S* out) {
    for (int64_t i = 0; i < count; ++i) out[i] = masses ? static_cast<const S*>(masses)[begin + i] : S(1);
    std::fill(out + count, out + padded, S(0));
  }

  bool columns_are_plain() const {
    return std::all_of(column_offset, column_offset + m, [](double h) { return h == 0; });
  }

  void build_row(const T* c, double offset, S* row) const {
    const double rate = 1.0 / (eps * kLnBase<S>);
    for (int64_t j = 0; j < m; ++j) row[j] = S((offset + column_offset[j] - double(widen(c[j]))) * rate);
    std::fill(row + m, row + pitch, S(0));
    for (int64_t j = 0; j < pitch; j += kLanes) {
      const auto counts = Lanes<F>::load(b + j) > F(S(0));
      Lanes<F>::store(row + j, select(counts, power(Lanes<F>::load(row + j)), F(S(0))));
    }
  }

  // Without column offsets and with a row offset that S holds: the difference from the row's minimum, whose rounding is
  // relative to itself, needs no double.
  void build_row_from_minimum(const T* c, S offset, S* row) const {
    const F rate(S(1.0 / (eps * kLnBase<S>))), minimum(offset), zero(S(0));
    for (int64_t j = 0; j < m; j += kLanes) {
      const int count = int(std::min<int64_t>(kLanes, m - j));
      const F z = count == kLanes ? Lanes<F>::load(c + j) : Lanes<F>::load(c + j, count, S(0));
      Lanes<F>::store(row + j, select(Lanes<F>::load(b + j) > zero, power((minimum - z) * rate), zero));
    }
    for (int64_t j = (m + kLanes - 1) / kLanes * kLanes; j < pitch; ++j) row[j] = S(0);
  }

  template <int Rows, class Weights> KD_HD void sweep_rows(int64_t i, const S* y, S* sums, Weights& weights) const {
    const S* row = k + i * pitch;
    F dot[Rows];
    for (int r = 0; r < Rows; ++r) dot[r] = F(S(0));
    for (int64_t j = 0; j < pitch; j += kLanes) {
      const F factor = Lanes<F>::load(y + j);
      for (int r = 0; r < Rows; ++r) dot[r] = fma(Lanes<F>::load(row + r * pitch + j), factor, dot[r]);
    }
    S dots[Rows], w[Rows] = {};
    if constexpr (Rows == 8) {
      reduce_add8(dot, dots);
    } else {
      for (int r = 0; r < Rows; ++r) dots[r] = reduce_add(dot[r]);
    }
    weights(i, Rows, dots, w);
    for (int64_t j = 0; j < pitch; j += kLanes) {
      F sum = Lanes<F>::load(sums + j);
      for (int r = 0; r < Rows; ++r) sum = fma(F(w[r]), Lanes<F>::load(row + r * pitch + j), sum);
      Lanes<F>::store(sums + j, sum);
    }
  }

  static bool drifted(const S* mass, const S* scaling, int64_t count) {
    uint32_t any = 0;
    for (int64_t i = 0; i < count; i += kLanes) {
      const int left = int(std::min<int64_t>(kLanes, count - i));
      const F x = left == kLanes ? Lanes<F>::load(scaling + i) : Lanes<F>::load(scaling + i, left, S(0));
      any |= drifted_lanes(Lanes<F>::load(mass + i), x);
    }
    return any != 0;
  }

  double row_minimum(const T* c) const {
    const F infinity(std::numeric_limits<S>::infinity());
    F least = infinity;
    for (int64_t j = 0; j < m; j += kLanes) {
      const int count = int(std::min<int64_t>(kLanes, m - j));
      const F z = count == kLanes ? Lanes<F>::load(c + j) : Lanes<F>::load(c + j, count, S(0));
      least = min(select(Lanes<F>::load(b + j) > F(S(0)), z, infinity), least);
    }
    return -double(reduce_max(F(S(0)) - least));
  }

  double offset_row_minimum(const T* c) const {
    double least = std::numeric_limits<double>::infinity();
    for (int64_t j = 0; j < m; ++j) {
      const double d = double(widen(c[j])) - column_offset[j];
      if (b[j] > S(0) && d < least) least = d;
    }
    return least;
  }

  void absorb(const S* scaling, int64_t count, double direction, double* offset) {
    for (int64_t i = 0; i < count; ++i)
      if (scaling[i] > S(0)) offset[i] += direction * eps * std::log(double(scaling[i]));
  }
};

KD_END
