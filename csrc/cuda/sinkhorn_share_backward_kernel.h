// The exact derivative of the iterations of a large problem by a cluster of blocks, all in one launch;
// csrc/cpu/sinkhorn_backward.h has the formulas.
#pragma once

#include "sinkhorn_share.h"

namespace kd::cuda {

class ShareReverse {
 public:
  KD_DEVICE ShareReverse(const SinkhornBackwardCall& of_call, bool on_chip)
      : call(of_call),
        share(of_call.of, of_call.workspace, kSinkhornTerms, on_chip),
        eps(share.problem.eps),
        upstream(of_call.upstream[share.problem.index]),
        x(share.rows[0]),
        alpha(share.rows[1]),
        a_gradient(share.rows[2]),
        y(share.columns[0]),
        beta(share.columns[1]),
        b_gradient(share.columns[2]),
        centre(share.columns[3]),
        f(reinterpret_cast<double*>(share.rows[4])),  // and 5
        g(reinterpret_cast<double*>(share.columns[4])) {}

  KD_DEVICE void run() {
    int64_t t = call.run[share.problem.index];
    jumped = frames_differ();
    take_offsets(2);
    // Offsets that were taken anew before the iterations stopped early hold the last scalings already.
    if (t < call.of.iterations && share.anywhere(has_drifted(t))) release(t);
    scale_rows(t);
    scale_columns(t, false);
    share.barrier();
    bool stale = true;  // K is of another frame
    bool begun = false;
    bool split = false;  // the columns of the first iteration are done, in frame B
    while (true) {
      if (terms > 0 && (stale || t == 0 || terms + 2 > kSinkhornTerms)) {
        share.barrier();
        flush();
        share.barrier();  // terms are written anew
      }
      if (t == 0) break;
      if (stale) share.build();
      stale = false;
      if (!begun) begin(t);
      begun = true;
      if (!split) begin_columns();
      const bool second = in_second_frame(t);
      const float* const scaling = rho(t);
      float* const gathered = row_term(terms);
      share.sweep(column_weights, [&](int i, float sum) KD_LAMBDA {
        if (!split) alpha[i] -= relative(scaling[i], second) * sum;
        if (second && !split) return 0.0f;
        a_gradient[i] += alpha[i];
        gathered[i] = x[i] * alpha[i];
        alpha[i] = 0.0f;
        return gathered[i];
      });
      if (second && !split) {
        // The columns were scaled in frame B, the rows in frame A.
        take_offsets(0);
        share.for_rows([&](int i) KD_LAMBDA { x[i] = share.a(i) * scaling[i]; });
        split = stale = true;
      } else {
        stale = end_rows(t);
        --t;
      }
    }
    write();
  }

 private:
  KD_DEVICE const float* rho(int64_t t) const {
    return line_of(call.history, share.problem.index, call.of.iterations, t - 1, call.of.rows + call.of.columns);
  }
  KD_DEVICE const float* sigma(int64_t t) const { return rho(t) + call.of.rows; }
  KD_DEVICE const double* offsets(int slot) const {
    return line_of(call.offsets, share.problem.index, 3, slot, call.of.rows + call.of.columns);
  }

  KD_DEVICE bool frames_differ() {  // A and B
    bool differ = false;
    share.for_rows([&](int i) KD_LAMBDA { differ |= offsets(0)[i] != offsets(1)[i]; });
    share.for_columns([&](int j) KD_LAMBDA { differ |= offsets(0)[call.of.rows + j] != offsets(1)[call.of.rows + j]; });
    return share.anywhere(differ);
  }

  KD_DEVICE bool in_second_frame(int64_t t) const { return t == 1 && jumped; }

  KD_DEVICE void take_offsets(int slot) const {
    share.for_rows([&](int i) KD_LAMBDA { share.row_offset[i] = offsets(slot)[i]; });
    share.for_columns([&](int j) KD_LAMBDA { share.column_offset[j] = offsets(slot)[call.of.rows + j]; });
  }

  // Of the block's rows and columns.
  KD_DEVICE bool has_drifted(int64_t t) const {
    bool drifted = false;
    share.for_rows([&](int i) KD_LAMBDA { drifted |= drifted_lanes(share.a(i), rho(t)[i]) != 0; });
    share.for_columns([&](int j) KD_LAMBDA { drifted |= drifted_lanes(share.b(j), sigma(t)[j]) != 0; });
    return drifted;
  }

  // From the frame after iteration t to its own, where the scalings were absorbed in between.
  KD_DEVICE void release(int64_t t) const {
    if (t == 1) {
      take_offsets(1);  // exactly, whatever was rounded on the way
    } else {
      share.for_rows([&](int i) KD_LAMBDA { share.row_offset[i] = moved(share.row_offset[i], rho(t)[i], eps, -1); });
      share.for_columns(
          [&](int j) KD_LAMBDA { share.column_offset[j] = moved(share.column_offset[j], sigma(t)[j], eps, -1); });
    }
  }

  KD_DEVICE void scale_rows(int64_t t) const {
    share.for_rows([&](int i) KD_LAMBDA { x[i] = scaled(share.a(i), rho(t)[i], in_second_frame(t)); });
  }
  KD_DEVICE void scale_columns(int64_t t, bool absorbed) const {
    share.for_columns([&](int j) KD_LAMBDA { y[j] = scaled(share.b(j), sigma(t)[j], absorbed); });
  }

  // G = dL/dP beside the explicit cost, less the centre of its column, to `total`; 0 where nothing can be sent. The
  // difference is rounded once: of numbers much larger than eps it would lose the digits that count.
  KD_DEVICE void derive(float* total) const {
    const float* asked = call.plan_upstream;
    if (asked) asked += share.problem.index * call.of.rows * call.of.columns;
    with_costs(call.of, share.problem, [&](auto costs) {
      share.for_rows_by_warps([&](int i) KD_LAMBDA {
        const float* row = share.kernel_row(i);
#pragma unroll 4
        for (int j = share.lane; j < share.problem.columns; j += 32) {
          const int64_t at = i * call.of.columns + j;
          float derivative = call.of.entropic ? float(double(upstream) * (f[i] + g[j]) - double(centre[j]))
                                              : fma(upstream, costs(i, j), -centre[j]);
          if (asked) derivative += asked[at];
          total[at] = row[j] == 0.0f ? 0.0f : derivative;
        }
      });
    });
    __syncthreads();
  }

  // total = dV P - M / eps with M = G * P, alpha = rho (G K y), beta = sigma (G^T K x), all with the columns of G
  // centred: what G has in common there changes nothing but dL/db.
  KD_DEVICE void begin(int64_t last) {
    share.for_rows([&](int i) KD_LAMBDA {
      f[i] = x[i] == 0.0f ? 0.0 : potential(share.row_offset[i], x[i], eps);
      a_gradient[i] = 0.0f;
    });
    share.for_columns([&](int j) KD_LAMBDA {
      g[j] = y[j] == 0.0f ? 0.0 : potential(share.column_offset[j], y[j], eps);
      centre[j] = 0.0f;
    });
    share.barrier();
    const int64_t width = call.of.columns;
    float* const total = call.total + share.problem.index * call.of.rows * width;
    for (int pass = 0; pass < 2; ++pass) {
      derive(total);
      share.add_up_columns([&](int i, int j)
                               KD_LAMBDA { return total[i * width + j] * share.kernel_row(i)[j] * x[i]; });
      share.barrier();
      share.for_columns([&](int j) KD_LAMBDA {
        const float scaled_sum = share.column_sum(j) * sigma(last)[j];
        if (pass == 0) b_gradient[j] = centre[j] = scaled_sum;
        if (pass == 1) beta[j] = scaled_sum;
      });
      share.barrier();
    }
    const float inverse_eps = float(1.0 / eps);
    share.for_rows_by_warps([&](int i) KD_LAMBDA {
      const float* row = share.kernel_row(i);
      float sum = 0.0f;
#pragma unroll 4
      for (int j = share.lane; j < share.problem.columns; j += 32) {
        const float weighted = total[i * width + j] * row[j];
        sum = fma(weighted, y[j], sum);
        total[i * width + j] = x[i] * y[j] * (upstream * row[j] - weighted * inverse_eps);
      }
      sum = add_lanes(sum);
      if (share.lane == 0) alpha[i] = relative(rho(last)[i], in_second_frame(last)) * sum;
    });
  }

  KD_DEVICE float* row_term(int k) const { return share.row_terms + k * sinkhorn_pitch(call.of.rows); }
  KD_DEVICE float* column_term(int k) const { return share.column_terms + k * share.pitch; }

  // The columns of an iteration, whose term is x y'.
  KD_DEVICE void begin_columns() {
    column_weights = column_term(terms);
    share.for_columns([&](int j) KD_LAMBDA {
      b_gradient[j] += beta[j];
      column_weights[j] = y[j] * beta[j];
    });
    share.fill_up(column_weights);
    share.for_rows([&](int i) KD_LAMBDA { row_term(terms)[i] = x[i]; });
    ++terms;
    share.barrier();
  }

  // The rows of iteration t, which were scaled against the columns of t - 1; then the scalings of that. -> whether they
  // belong to another frame.
  KD_DEVICE bool end_rows(int64_t t) {
    const bool absorbed = share.anywhere(t > 1 && has_drifted(t - 1));
    float* const right = column_term(terms);
    ++terms;
    if (t == 1) {
      share.for_columns([&](int j) KD_LAMBDA { right[j] = share.b(j) > 0.0f ? 1.0f : 0.0f; });
      return false;
    }
    const float* scaling = sigma(t - 1);
    share.for_columns([&](int j) KD_LAMBDA {
      right[j] = scaled(share.b(j), scaling[j], absorbed);
      beta[j] = -relative(scaling[j], absorbed) * share.column_sum(j);
    });
    if (absorbed) release(t - 1);
    scale_rows(t - 1);
    scale_columns(t - 1, false);
    return absorbed;
  }

  // total += K * (sum of the terms) / eps.
  KD_DEVICE void flush() {
    const int count = terms;
    terms = 0;
    if (!call.cost_gradient) return;
    constexpr int kRows = Share::kFlushRows;
    const float inverse_eps = float(1.0 / eps);
    for (int first = share.first_row; first < share.last_row; first += kRows) {
      __syncthreads();
      for (int k = share.thread; k < count * kRows; k += Share::kThreads) {
        const int i = first + k % kRows;
        share.shared->terms[k / kRows][k % kRows] = i < share.last_row ? row_term(k / kRows)[i] : 0.0f;
      }
      __syncthreads();
      for (int j = share.thread; j < share.problem.columns; j += Share::kThreads) {
        float sum[kRows] = {};
        for (int k = 0; k < count; ++k) {
          const float right = column_term(k)[j];
          const float4* left = reinterpret_cast<const float4*>(share.shared->terms[k]);
#pragma unroll
          for (int r = 0; r < kRows; r += 4) {
            const float4 v = left[r / 4];
            sum[r] = fma(v.x, right, sum[r]);
            sum[r + 1] = fma(v.y, right, sum[r + 1]);
            sum[r + 2] = fma(v.z, right, sum[r + 2]);
            sum[r + 3] = fma(v.w, right, sum[r + 3]);
          }
        }
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
          const int i = first + r;
          if (i >= share.last_row) break;
          float* total = call.total + (share.problem.index * call.of.rows + i) * call.of.columns + j;
          *total = fma(share.kernel_row(i)[j] * inverse_eps, sum[r], *total);
        }
      }
    }
  }

  KD_DEVICE void write() const {
    const SinkhornProblems& of = call.of;
    if (call.cost_gradient && call.cost_gradient != call.total) {
      share.for_rows_by_warps([&](int i) KD_LAMBDA {
        const int64_t begin = (share.problem.index * of.rows + i) * of.columns;
        for (int j = share.lane; j < share.problem.columns; j += 32)
          store(of.dtype, call.cost_gradient, begin + j, call.total[begin + j]);
      });
    }
    share.for_rows([&](int i) KD_LAMBDA {
      if (call.a_gradient) call.a_gradient[share.problem.index * of.rows + i] = a_gradient[i];
    });
    share.for_columns([&](int j) KD_LAMBDA {
      if (call.b_gradient) call.b_gradient[share.problem.index * of.columns + j] = b_gradient[j];
    });
  }

  const SinkhornBackwardCall& call;
  Share share;
  const double eps;
  const float upstream;
  float *x, *alpha, *a_gradient, *y, *beta, *b_gradient, *centre;
  double *f, *g;                    // potentials; 0 where nothing is sent
  bool jumped = false;              // from frame A to frame B, in the first iteration
  int terms = 0;                    // gathered since the last flush
  float* column_weights = nullptr;  // y' of the iteration
};

__global__ void __launch_bounds__(Share::kThreads, 1)
    sinkhorn_share_backward_kernel(const SinkhornBackwardCall call, const bool on_chip) {
  if (is_shared(call.of)) ShareReverse(call, on_chip).run();
}

}  // namespace kd::cuda
