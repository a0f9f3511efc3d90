// Sinkhorn iterations of a problem in registers, all in one launch.
#pragma once

#include "sinkhorn_tile.h"

namespace kd::cuda {

template <int kSize, int kEntries> class TileSolver {
  using T = Tile<kSize, kEntries>;

 public:
  KD_DEVICE explicit TileSolver(const SinkhornCall& of_call) : call(of_call), tile(tile_memory<kSize, kEntries>()) {}

  KD_DEVICE void run(int64_t problem) {
    tile.load_masses(call.of, problem);
    tile.load_costs(call.of);
    begin();
    const double mass = tile.total_of_lines(tile.a());
    bool stale = true;    // K is of another frame
    bool jumped = false;  // to frame B: rho is known, and absorbed
    int64_t t = 0;
    while (t < call.of.iterations) {
      if (stale) tile.build();
      stale = false;
      float next = x;
      if (!jumped) {
        const float sum = tile.product(tile.in_row, tile.shared->y);
        const float scaling = reciprocal_of_sum(sum);
        next = tile.a() * scaling;
        if (t > 0 && call.tolerance >= 0) {
          const double misplaced = tile.total_of_lines(abs(fma(x, sum, -tile.a())));
          if (misplaced <= call.tolerance * mass) break;  // with the plan of the iteration before
        }
        rho = scaling;
      }
      x = next;
      tile.publish(tile.shared->x[0], x);
      tile.sync();
      const float sum = tile.product(tile.in_column, tile.shared->x[0]);
      if (t == 0 && !jumped) {
        keep_offsets(0);
        jumped = tile.any(tile.b() > 0.0f && sum < ScalingLimits<float>::kFar);
        if (jumped) {
          jump();
          stale = true;
          continue;
        }
      }
      if (t == 0) keep_offsets(1);
      sigma = reciprocal_of_sum(sum);
      y = tile.b() * sigma;
      tile.publish(tile.shared->y, y);
      keep_history(t);
      ++t;
      tile.raise((drifted_lanes(tile.a(), rho) | drifted_lanes(tile.b(), sigma)) != 0);
      tile.sync();
      if (tile.raised()) {
        tile.lower();
        if (t < call.of.iterations) {
          absorb(jumped);
          stale = true;
        }
      }
      jumped = false;
    }
    if (tile.thread == 0) call.run[tile.problem.index] = t;
    keep_offsets(2);
    finish(mass);
  }

 private:
  // Frame A: every row with mass has an entry of 1.
  KD_DEVICE void begin() {
    const bool given = call.start && tile.line < tile.problem.columns;
    const float start = given ? call.start[tile.problem.index * call.of.columns + tile.line] : 0.0f;
    tile.publish(tile.shared->column_offset, abs(start) < kInfinity ? double(start) : 0.0);
    y = tile.b() > 0.0f ? 1.0f : 0.0f;
    tile.publish(tile.shared->y, y);
    tile.sync();
    double nearest = kInfinity;
#pragma unroll 4
    for (int e = 0; e < kEntries; ++e) {
      const double distance = double(tile.cost_in_row(e)) - tile.shared->column_offset[tile.entry(e)];
      nearest = distance < nearest ? distance : nearest;
    }
    nearest = tile.least(nearest);
    tile.publish(tile.shared->row_offset, nearest < double(kInfinity) ? nearest : 0.0);
    x = rho = sigma = 0.0f;
  }

  // Frame B: every column that something is sent to has an entry of 1.
  KD_DEVICE void jump() {
    tile.move_row_offset(rho, 1);
    x = scaled(tile.a(), rho, true);
    tile.publish(tile.shared->x[0], x);
    tile.sync();
    double nearest = kInfinity;
#pragma unroll 4
    for (int e = 0; e < kEntries; ++e) {
      const int i = tile.entry(e);
      const double distance = double(tile.cost_in_column(e)) - tile.shared->row_offset[i];
      nearest = tile.shared->x[0][i] > 0.0f && distance < nearest ? distance : nearest;
    }
    nearest = tile.least(nearest);
    tile.publish(tile.shared->column_offset, abs(nearest) < double(kInfinity) ? nearest : 0.0);
  }

  KD_DEVICE void absorb(bool rows_are_absorbed) {
    if (!rows_are_absorbed) tile.move_row_offset(rho, 1);
    tile.move_column_offset(sigma, 1);
    x = scaled(tile.a(), rho, true);
    y = scaled(tile.b(), sigma, true);
    tile.publish(tile.shared->y, y);
  }

  KD_DEVICE void keep_history(int64_t t) const {
    if (!call.history) return;
    const int64_t width = call.of.rows + call.of.columns;
    float* at = line_of(call.history, tile.problem.index, call.of.iterations, t, width);
    if (tile.row_in()) at[tile.line] = rho;
    if (tile.column_in()) at[call.of.rows + tile.line] = sigma;
  }

  KD_DEVICE void keep_offsets(int slot) const {
    if (!call.offsets) return;
    double* at = line_of(call.offsets, tile.problem.index, 3, slot, call.of.rows + call.of.columns);
    if (tile.row_in()) at[tile.line] = tile.shared->row_offset[tile.line];
    if (tile.column_in()) at[call.of.rows + tile.line] = tile.shared->column_offset[tile.line];
  }

  // Plan, value, potentials and marginal error.
  KD_DEVICE void finish(double mass) {
    const SinkhornProblems& of = call.of;
    const Problem& problem = tile.problem;
    tile.publish(tile.shared->x[1], x);
    tile.sync();
    const float sent = x * tile.product(tile.in_row, tile.shared->y);
    const double f = potential(tile.shared->row_offset[tile.line], x, problem.eps);
    const double g = potential(tile.shared->column_offset[tile.line], y, problem.eps);
    if (tile.row_in()) call.f[problem.index * of.rows + tile.line] = float(f);
    if (tile.column_in()) call.g[problem.index * of.columns + tile.line] = float(g);
    float received = 0.0f, carried = 0.0f;
#pragma unroll
    for (int e = 0; e < kEntries; ++e) {
      const int i = tile.entry(e);
      const float p = tile.shared->x[1][i] * tile.in_column[e] * y;
      received += p;
      carried += p == 0.0f ? 0.0f : p * tile.cost_in_column(e);  // nothing at an infinite cost; NaN stays
      tile.cost_in_column(e) = p;
    }
    if (call.plan) {
      tile.sync();
      float* plan = call.plan + problem.index * of.rows * of.columns;
      tile.for_matrix([&](int i, int j, float p) KD_LAMBDA { plan[i * of.columns + j] = p; });
    }
    double value = carried;
    if (of.entropic) {
      // <P, C> + eps <P, log P - 1> with C + eps log P = f + g, whose sums are over rows and columns alone.
      value = received == 0.0f ? 0.0 : g * double(received);
      if (tile.part == 0 && sent != 0.0f) value += (f - problem.eps) * double(sent);
    }
    value = tile.total(value);
    const double misplaced = tile.total_of_lines(abs(double(sent) - double(tile.a())));
    if (tile.thread == 0) {
      call.value[problem.index] = float(value);
      call.error[problem.index] = mass > 0 ? float(misplaced / mass) : 0.0f;
    }
  }

  const SinkhornCall& call;
  T tile;
  float x, y, rho, sigma;  // of the thread's row and column
};

template <int kSize, int kEntries> __global__ void __launch_bounds__(Tile<kSize, kEntries>::kBlock)
    sinkhorn_tile_kernel(const SinkhornCall call) {
  const int64_t problem = tile_problem<kSize, kEntries>(call.of);
  if (problem >= 0) TileSolver<kSize, kEntries>(call).run(problem);
}

}  // namespace kd::cuda
