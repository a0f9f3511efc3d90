// Sinkhorn iterations of a large problem by a cluster of blocks, all in one launch.
#pragma once

#include "sinkhorn_share.h"

namespace kd::cuda {

class ShareSolver {
 public:
  KD_DEVICE ShareSolver(const SinkhornCall& of_call, bool on_chip)
      : call(of_call),
        share(of_call.of, of_call.workspace, 0, on_chip),
        eps(share.problem.eps),
        x(share.rows[0]),
        next(share.rows[1]),
        rho(share.rows[2]),
        excess(share.rows[3]),
        y(share.columns[0]),
        sigma(share.columns[1]) {}

  KD_DEVICE void run() {
    begin();
    const double mass = share.sum(share.problem.rows, [&](int i) { return double(share.a(i)); });
    bool stale = true;    // K is of another frame
    bool jumped = false;  // to frame B: rho is known, and absorbed
    int64_t t = 0;
    while (t < call.of.iterations) {
      if (stale) share.build();
      stale = false;
      bool drifted = false;
      share.sweep(y, [&](int i, float sum) KD_LAMBDA {
        const float a = share.a(i);
        if (!jumped) {
          rho[i] = reciprocal_of_sum(sum);
          excess[i] = abs(fma(x[i], sum, -a));
        }
        drifted |= drifted_lanes(a, rho[i]) != 0;
        return next[i] = scaled(a, rho[i], jumped);
      });
      share.barrier();
      if (t > 0 && call.tolerance >= 0) {
        const double misplaced = share.sum(share.problem.rows, [&](int i) { return double(excess[i]); });
        if (misplaced <= call.tolerance * mass) break;  // with the plan of the iteration before
      }
      float* const before = x;
      x = next;
      next = before;
      if (t == 0 && !jumped) {
        keep_offsets(0);
        bool far = false;
        share.for_columns(
            [&](int j) KD_LAMBDA { far |= share.b(j) > 0.0f && share.column_sum(j) < ScalingLimits<float>::kFar; });
        jumped = share.anywhere(far);
        if (jumped) {
          jump();
          stale = true;
          continue;
        }
      }
      if (t == 0) keep_offsets(1);
      share.for_columns([&](int j) KD_LAMBDA {
        sigma[j] = reciprocal_of_sum(share.column_sum(j));
        y[j] = share.b(j) * sigma[j];
        drifted |= drifted_lanes(share.b(j), sigma[j]) != 0;
      });
      keep_history(t);
      ++t;
      if (share.anywhere(drifted) && t < call.of.iterations) {
        absorb(jumped);
        stale = true;
      }
      jumped = false;
    }
    if (share.rank == 0 && share.thread == 0) call.run[share.problem.index] = t;
    keep_offsets(2);
    finish(mass);
  }

 private:
  // Frame A: every row with mass has an entry of 1.
  KD_DEVICE void begin() {
    share.for_columns([&](int j) KD_LAMBDA {
      const float start = call.start ? call.start[share.problem.index * call.of.columns + j] : 0.0f;
      share.column_offset[j] = abs(start) < kInfinity ? double(start) : 0.0;
      y[j] = share.b(j) > 0.0f ? 1.0f : 0.0f;
    });
    share.fill_up(y);
    share.barrier();
    with_costs(call.of, share.problem, [&](auto costs) {
      share.for_rows_by_warps([&](int i) KD_LAMBDA {
        double nearest = kInfinity;
        if (share.a(i) > 0.0f) {
          for (int j = share.lane; j < share.problem.columns; j += 32) {
            if (!(share.b(j) > 0.0f)) continue;
            const double distance = double(costs(i, j)) - share.column_offset[j];
            nearest = distance < nearest ? distance : nearest;
          }
        }
        for (int distance = 16; distance > 0; distance /= 2)
          nearest = min(nearest, __shfl_xor_sync(kAllLanes, nearest, distance));
        if (share.lane == 0) share.row_offset[i] = nearest < double(kInfinity) ? nearest : 0.0;
      });
    });
    share.for_rows([&](int i) KD_LAMBDA { x[i] = 0.0f; });
    __syncthreads();
  }

  // Frame B: every column that something is sent to has an entry of 1.
  KD_DEVICE void jump() {
    share.for_rows([&](int i) KD_LAMBDA {
      share.row_offset[i] = moved(share.row_offset[i], rho[i], eps);
      x[i] = scaled(share.a(i), rho[i], true);
    });
    share.barrier();
    with_costs(call.of, share.problem, [&](auto costs) {
      share.for_columns([&](int j) KD_LAMBDA {
        double nearest = kInfinity;
        for (int i = 0; i < share.problem.rows && share.b(j) > 0.0f; ++i) {
          if (!(x[i] > 0.0f)) continue;
          const double distance = double(costs(i, j)) - share.row_offset[i];
          nearest = distance < nearest ? distance : nearest;
        }
        share.column_offset[j] = abs(nearest) < double(kInfinity) ? nearest : 0.0;
      });
    });
    share.barrier();
  }

  KD_DEVICE void absorb(bool rows_are_absorbed) {
    share.for_rows([&](int i) KD_LAMBDA {
      if (!rows_are_absorbed) share.row_offset[i] = moved(share.row_offset[i], rho[i], eps);
      x[i] = scaled(share.a(i), rho[i], true);
    });
    share.for_columns([&](int j) KD_LAMBDA {
      share.column_offset[j] = moved(share.column_offset[j], sigma[j], eps);
      y[j] = scaled(share.b(j), sigma[j], true);
    });
    share.barrier();
  }

  KD_DEVICE void keep_history(int64_t t) const {
    if (!call.history) return;
    float* at = line_of(call.history, share.problem.index, call.of.iterations, t, call.of.rows + call.of.columns);
    share.for_rows([&](int i) KD_LAMBDA { at[i] = rho[i]; });
    share.for_columns([&](int j) KD_LAMBDA { at[call.of.rows + j] = sigma[j]; });
  }

  KD_DEVICE void keep_offsets(int slot) const {
    if (!call.offsets) return;
    double* at = line_of(call.offsets, share.problem.index, 3, slot, call.of.rows + call.of.columns);
    share.for_rows([&](int i) KD_LAMBDA { at[i] = share.row_offset[i]; });
    share.for_columns([&](int j) KD_LAMBDA { at[call.of.rows + j] = share.column_offset[j]; });
  }

  // Plan, value, potentials and marginal error.
  KD_DEVICE void finish(double mass) {
    const Problem& problem = share.problem;
    const bool entropic = call.of.entropic;
    float* const sent = next;
    float* const of_row = rho;  // parts of the value
    float* const of_column = sigma;
    share.sweep(y, [&](int i, float sum) KD_LAMBDA {
      sent[i] = x[i] * sum;
      return x[i];
    });
    share.barrier();
    // <P, C> + eps <P, log P - 1> with C + eps log P = f + g, whose sums are over rows and columns alone.
    share.for_rows([&](int i) KD_LAMBDA {
      const double f = potential(share.row_offset[i], x[i], eps);
      call.f[problem.index * call.of.rows + i] = float(f);
      of_row[i] = sent[i] == 0.0f ? 0.0f : float((f - eps) * double(sent[i]));
    });
    share.for_columns([&](int j) KD_LAMBDA {
      const double g = potential(share.column_offset[j], y[j], eps);
      const float received = y[j] * share.column_sum(j);
      call.g[problem.index * call.of.columns + j] = float(g);
      of_column[j] = received == 0.0f ? 0.0f : float(g * double(received));
    });
    __syncthreads();
    if (!entropic || call.plan) carry(of_row);
    share.barrier();
    if (share.rank != 0) return;
    double value = share.sum(problem.rows, [&](int i) { return double(of_row[i]); });
    if (entropic) value += share.sum(problem.columns, [&](int j) { return double(of_column[j]); });
    const double misplaced = share.sum(problem.rows, [&](int i) { return abs(double(sent[i]) - double(share.a(i))); });
    if (share.thread == 0) {
      call.value[problem.index] = float(value);
      call.error[problem.index] = mass > 0 ? float(misplaced / mass) : 0.0f;
    }
  }

  // The plan, and what each row carries at which cost: nothing at an infinite one; NaN stays.
  KD_DEVICE void carry(float* of_row) const {
    float* plan = call.plan ? call.plan + share.problem.index * call.of.rows * call.of.columns : nullptr;
    with_costs(call.of, share.problem, [&](auto costs) {
      share.for_rows_by_warps([&](int i) KD_LAMBDA {
        const float* row = share.kernel_row(i);
        float carried = 0.0f;
        for (int j = share.lane; j < share.problem.columns; j += 32) {
          const float p = x[i] * row[j] * y[j];
          carried += p == 0.0f ? 0.0f : p * costs(i, j);
          if (plan) plan[i * call.of.columns + j] = p;
        }
        carried = add_lanes(carried);
        if (share.lane == 0 && !call.of.entropic) of_row[i] = carried;
      });
    });
  }

  const SinkhornCall& call;
  Share share;
  const double eps;
  float *x, *next, *rho, *excess, *y, *sigma;
};

__global__ void __launch_bounds__(Share::kThreads) sinkhorn_share_kernel(const SinkhornCall call, const bool on_chip) {
  if (is_shared(call.of)) ShareSolver(call, on_chip).run();
}

}  // namespace kd::cuda
