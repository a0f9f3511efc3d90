// The arithmetic of l1_cost.h for one register type and one pair of dtypes.
#pragma once

#include <algorithm>

#include "kd/elementary.h"
#include "l1_cost.h"
#include "row_sweeps.h"

KD_BEGIN

template <class F, class Ts, class Tt> struct L1Kernel {
  using S = ScalarOf<F>;
  static constexpr int kLanes = Traits<F>::kLanes;
  static constexpr int kWide = kLanes == 16 ? 4 : 2;  // columns of a tile of sums that has four rows

  static void statistics(const L1Call& call, int64_t row) {
    const int64_t per_problem = call.rows + call.others, problem = row / per_problem, i = row % per_problem;
    S* out = static_cast<S*>(call.statistics) + 2 * row;
    const bool student = i < call.rows;
    const uint8_t* mask = student ? call.student_mask : call.teacher_mask;
    if (mask && !mask[student ? problem * call.rows + i : problem * call.others + i - call.rows]) {
      out[0] = out[1] = S(0);
    } else if (student) {
      statistics_of(row_of<Ts>(call.student, problem, i), call.columns, call.inverse_temperature_student, out);
    } else {
      statistics_of(row_of<Tt>(call.teacher, problem, i - call.rows), call.columns, call.inverse_temperature_teacher,
                    out);
    }
  }

  static void cost(const L1Call& call, const L1Tile& tile, int64_t begin, int64_t end, void* costs, void* scratch) {
    S* q = static_cast<S*>(scratch);
    S* p = q + kL1Rows * kL1Pitch;
    S* out = static_cast<S*>(costs);
    std::fill(out, out + tile.count * tile.other_count, S(0));
    for (int64_t block = begin; block < end; ++block) {
      const int64_t width = student_block(call, tile, block, q);
      for (int64_t first = 0; first < tile.other_count; first += kL1Rows) {
        const int64_t others = teacher_block(call, tile, block, first, p);
        for (int64_t i = 0; i < tile.count; i += 4) {
          for (int64_t j = 0; j < others; j += kWide) {
            distances(q + i * kL1Pitch, p + j * kL1Pitch, width, std::min<int64_t>(4, tile.count - i),
                      std::min<int64_t>(kWide, others - j), out + i * tile.other_count + first + j, tile.other_count);
          }
        }
      }
    }
  }

  static void derivative(const L1Call& call, const L1Tile& tile, int64_t block, const void* upstream, void* derivative,
                         void* sums, void* scratch) {
    S* q = static_cast<S*>(scratch);
    S* p = q + kL1Rows * kL1Pitch;
    S* g = p + kL1Rows * kL1Pitch;
    const S* w = static_cast<const S*>(upstream);
    const S* minus_total = w + tile.other_count * kL1Rows;
    const int64_t width = student_block(call, tile, block, q);
    for (int64_t i = 0; i < tile.count; ++i)
      std::fill(g + i * kL1Pitch, g + i * kL1Pitch + width, call.softmax ? minus_total[i] : S(0));
    for (int64_t first = 0; first < tile.other_count; first += kL1Rows) {
      const int64_t others = teacher_block(call, tile, block, first, p);
      for (int64_t v = 0; v < width; v += kLanes) {
        for (int64_t i = 0; i < tile.count; i += 8) {
          const S* weights = w + first * kL1Rows + i;
          if (call.softmax) {
            gather<true>(q + i * kL1Pitch + v, p + v, others, weights, g + i * kL1Pitch + v);
          } else {
            gather<false>(q + i * kL1Pitch + v, p + v, others, weights, g + i * kL1Pitch + v);
          }
        }
      }
    }
    const int64_t begin = block * kL1Block, count = std::min(kL1Block, call.columns - begin);
    for (int64_t i = 0; i < tile.count; ++i) {
      const S *qi = q + i * kL1Pitch, *gi = g + i * kL1Pitch;
      if (!call.softmax) {
        Ts* out = gradient_row(call, tile, i) + begin;
        for (int64_t v = 0; v < count; ++v) narrow(gi[v], out + v);
        continue;
      }
      S* out = derivative_row(call, tile, i, derivative) + begin;
      BlockSum<F> sum;
      for_each_block<F>(
          count,
          [&](int64_t v, int left, int slot) KD_LAMBDA {
            const F x = Lanes<F>::load(gi + v);
            sum.add_product(slot, Lanes<F>::load(qi + v), x);  // q is 0 beyond the row
            store_row(out + v, x, left);
          },
          [&]() KD_LAMBDA { sum.flush(); });
      static_cast<S*>(sums)[i] = S(sum.total);
    }
  }

  static void finish(const L1Call& call, const L1Tile& tile, int64_t i, const void* derivative, double sum) {
    Ts* out = gradient_row(call, tile, i);
    if (call.softmax) {
      const Ts* z = row_of<Ts>(call.student, tile.problem, tile.rows[i]);
      const S* at = statistics_row(call, tile.problem, tile.rows[i]);
      const S* from = derivative_row(call, tile, i, derivative);
      const F mean{S(sum)};
      const F top(at[0]), inverse(S(double(at[1]) * call.inverse_temperature_student));
      const F rate(S(call.inverse_temperature_student / kLnBase<S>));
      for (int64_t v = 0; v < call.columns; v += kLanes) {
        const int count = int(std::min<int64_t>(kLanes, call.columns - v));
        const F q = power((load_row<F>(z + v, count, S(0)) - top) * rate) * inverse;
        store_row(out + v, q * (load_row<F>(from + v, count, S(0)) - mean), count);
      }
    }
    for (int64_t v = call.columns; v < call.width; ++v) narrow(S(0), out + v);
  }

 private:
  template <class T> static const T* row_of(const Batch& batch, int64_t problem, int64_t row) {
    return static_cast<const T*>(batch.first.data) + problem * batch.stride + row * batch.first.row_stride;
  }

  static Ts* gradient_row(const L1Call& call, const L1Tile& tile, int64_t i) {
    return static_cast<Ts*>(call.gradient) + (tile.problem * call.rows + tile.rows[i]) * call.width;
  }

  // In place of the gradient only where that is as wide.
  static S* derivative_row(const L1Call& call, const L1Tile& tile, int64_t i, const void* derivative) {
    void* row = gradient_row(call, tile, i);
    return derivative ? static_cast<S*>(const_cast<void*>(derivative)) + i * call.columns : static_cast<S*>(row);
  }

  static const S* statistics_row(const L1Call& call, int64_t problem, int64_t row) {
    return static_cast<const S*>(call.statistics) + 2 * (problem * (call.rows + call.others) + row);
  }

  template <class T> static void statistics_of(const T* z, int64_t n, double inverse_temperature, S* out) {
    F top(-std::numeric_limits<S>::infinity());
    for (int64_t v = 0; v < n; v += kLanes) {
      const int count = int(std::min<int64_t>(kLanes, n - v));
      top = max(top, load_row<F>(z + v, count, -std::numeric_limits<S>::infinity()));
    }
    out[0] = reduce_max(top);
    const F shift(out[0]), rate(S(inverse_temperature / kLnBase<S>));
    BlockSum<F> sum;
    for_each_block<F>(
        n,
        [&](int64_t v, int count, int slot) KD_LAMBDA {
          const F e = power((load_row<F>(z + v, count, -std::numeric_limits<S>::infinity()) - shift) * rate);
          sum.add(slot, e);
        },
        [&]() KD_LAMBDA { sum.flush(); });
    out[1] = S(1.0 / sum.total);
  }

  // Probabilities (or the entries themselves) of a block of a row, with zeros up to a whole register.
  template <class T> static void row_block(const T* z, int64_t count, const S* statistics, double inverse_temperature,
                                           bool softmax, S* out) {
    const F top(statistics[0]), inverse(statistics[1]), rate(S(inverse_temperature / kLnBase<S>));
    for (int64_t v = 0; v < count; v += kLanes) {
      const int left = int(std::min<int64_t>(kLanes, count - v));
      const F x = load_row<F>(z + v, left, softmax ? -std::numeric_limits<S>::infinity() : S(0));
      Lanes<F>::store(out + v, softmax ? power((x - top) * rate) * inverse : x);
    }
  }

  // -> columns of the block, in whole registers. Rows come in fours and eights: those beyond are zero.
  static int64_t student_block(const L1Call& call, const L1Tile& tile, int64_t block, S* q) {
    const int64_t begin = block * kL1Block, count = std::min(kL1Block, call.columns - begin);
    const int64_t width = (count + kLanes - 1) / kLanes * kLanes;
    for (int64_t i = 0; i < tile.count; ++i) {
      row_block(row_of<Ts>(call.student, tile.problem, tile.rows[i]) + begin, count,
                statistics_row(call, tile.problem, tile.rows[i]), call.inverse_temperature_student, call.softmax,
                q + i * kL1Pitch);
    }
    clear_rows(tile.count, width, q);
    return width;
  }

  // -> rows of the teacher from `first` on.
  static int64_t teacher_block(const L1Call& call, const L1Tile& tile, int64_t block, int64_t first, S* p) {
    const int64_t begin = block * kL1Block, count = std::min(kL1Block, call.columns - begin);
    const int64_t others = std::min(kL1Rows, tile.other_count - first);
    for (int64_t j = 0; j < others; ++j) {
      const int64_t row = tile.others[first + j];
      row_block(row_of<Tt>(call.teacher, tile.problem, row) + begin, count,
                statistics_row(call, tile.problem, call.rows + row), call.inverse_temperature_teacher, call.softmax,
                p + j * kL1Pitch);
    }
    clear_rows(others, (count + kLanes - 1) / kLanes * kLanes, p);
    return others;
  }

  static void clear_rows(int64_t count, int64_t width, S* block) {
    for (int64_t i = count; i < (count + 7) / 8 * 8; ++i)
      std::fill(block + i * kL1Pitch, block + i * kL1Pitch + width, S(0));
  }

  // out[i][j] += sum_v |q_iv - p_jv| for four rows and kWide others, of which only `rows` and `others` are wanted.
  static void distances(const S* q, const S* p, int64_t width, int64_t rows, int64_t others, S* out,
                        int64_t out_pitch) {
    F sum[4][kWide];
    for (auto& row : sum)
      for (F& s : row) s = F(S(0));
    for (int64_t v = 0; v < width; v += kLanes) {
      F y[kWide];
      for (int j = 0; j < kWide; ++j) y[j] = Lanes<F>::load(p + j * kL1Pitch + v);
      for (int i = 0; i < 4; ++i) {
        const F x = Lanes<F>::load(q + i * kL1Pitch + v);
        for (int j = 0; j < kWide; ++j) sum[i][j] = sum[i][j] + abs(x - y[j]);
      }
    }
    S total[4][kWide];
    for (int i = 0; i < 4; ++i)
      for (int j = 0; j < kWide; ++j) total[i][j] = reduce_add(sum[i][j]);
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t j = 0; j < others; ++j) out[i * out_pitch + j] += total[i][j];
  }

  // g_i += sum_j w_ij d|q_i - p_j| for eight rows and a register of columns. In front of a softmax a constant of the
  // row changes nothing, so the derivative is taken for 2 where q > p and 0 elsewhere; otherwise for -1, 0 or 1.
  template <bool Softmax> static void gather(const S* q, const S* p, int64_t others, const S* w, S* g) {
    F x[8], sum[8];
    for (int i = 0; i < 8; ++i) {
      x[i] = Lanes<F>::load(q + i * kL1Pitch);
      sum[i] = F(S(0));
    }
    for (int64_t j = 0; j < others; ++j) {
      const F y = Lanes<F>::load(p + j * kL1Pitch);
      for (int i = 0; i < 8; ++i) {
        const F weight(w[j * kL1Rows + i]);
        sum[i] = add_where(y < x[i], sum[i], weight);
        if (!Softmax) sum[i] = add_where(x[i] < y, sum[i], F(S(0)) - weight);
      }
    }
    const F factor(S(Softmax ? 2 : 1));
    for (int i = 0; i < 8; ++i) {
      Lanes<F>::store(g + i * kL1Pitch, fma(sum[i], factor, Lanes<F>::load(g + i * kL1Pitch)));
    }
  }
};

template <class F, class Ts, class Tt> L1Functions l1_functions_of() {
  using Kernel = L1Kernel<F, Ts, Tt>;
  return {Kernel::statistics, Kernel::cost, Kernel::derivative, Kernel::finish};
}

KD_END
