// The exact derivative of the iterations of a problem in registers, all in one launch; csrc/cpu/sinkhorn_backward.h has
// the formulas.
//
// The sum of rank-one matrices that the gradient of the cost is K times is kept beside K, by columns. Where the frame
// changes it goes, with the K it belongs to, into `total`.
#pragma once

#include "sinkhorn_tile.h"

namespace kd::cuda {

template <int kSize, int kEntries> class TileReverse {
  using T = Tile<kSize, kEntries>;

 public:
  KD_DEVICE explicit TileReverse(const SinkhornBackwardCall& of_call)
      : call(of_call), tile(tile_memory<kSize, kEntries>()) {}

  // Vectors of an iteration live in shared memory: x in x[t % 2], while threads still read that of t + 1; y'.
  KD_DEVICE void run(int64_t problem) {
    tile.load_masses(call.of, problem);
    int t = static_cast<int>(call.run[tile.problem.index]);
    jumped = tile.any(frames_differ());
    take_offsets(2);
    float rho, sigma;
    take_scalings(t, &rho, &sigma);
    // Offsets that were taken anew before the iterations stopped early hold the last scalings already.
    if (t < call.of.iterations && tile.any(has_drifted(rho, sigma))) release(t, rho, sigma);
    publish_rows(t, rho);
    tile.publish(tile.shared->y, scaled(tile.b(), sigma, false));
    bool stale = true;  // K is of another frame
    bool begun = false;
    bool split = false;  // the columns of the first iteration are done, in frame B
    while (true) {
      if (stale) {
        if (begun && call.cost_gradient) settle(false);
        tile.load_costs(call.of);
        tile.build();
        if (begun) {
          for_entries([&](int e, int) KD_LAMBDA { pairs[e] = 0.0f; });
        } else {
          begin(t);
        }
        stale = false;
        begun = true;
      }
      float rho_before, sigma_before;
      take_scalings(t - 1, &rho_before, &sigma_before);
      float* const x = tile.shared->x[t % 2];
      if (!split) {
        const bool second = in_second_frame(t);
        tile.sync();
        const float sum = tile.product(tile.in_row, tile.shared->y);
        if (tile.part == 0) tile.shared->alpha[tile.line] -= relative(tile.shared->rho[tile.line], second) * sum;
        if (second) {
          const float weight = tile.shared->y[tile.line];
          for_entries([&](int e, int i) KD_LAMBDA { pairs[e] = fma(x[i], weight, pairs[e]); });
          take_offsets(0);
          tile.sync();
          tile.publish(x, tile.a() * tile.shared->rho[tile.line]);
          tile.publish(tile.shared->y, 0.0f);  // its term is there
          split = stale = true;
          continue;
        }
      }
      if (tile.part == 0) {
        const float alpha = tile.shared->alpha[tile.line];
        tile.shared->alpha[tile.line] = 0.0f;
        tile.shared->a_gradient[tile.line] += alpha;
        tile.shared->z[tile.line] = x[tile.line] * alpha;
      }
      tile.raise(t > 1 && has_drifted(rho_before, sigma_before));
      tile.sync();
      const bool absorbed = tile.raised();
      // The rows of iteration t were scaled against the columns of t - 1.
      float y = t > 1 ? scaled(tile.b(), sigma_before, absorbed) : tile.b() > 0.0f ? 1.0f : 0.0f;
      const float sum = gather(x, tile.shared->y[tile.line], tile.shared->z, y);
      if (t == 1) break;
      --t;
      const float beta = -relative(sigma_before, absorbed) * sum;
      if (absorbed) {
        tile.lower();
        release(t, rho_before, sigma_before);
        y = scaled(tile.b(), sigma_before, false);
        stale = true;
      }
      publish_rows(t, rho_before);
      publish_columns(y, beta);
    }
    if (call.cost_gradient) settle(true);
    const SinkhornProblems& of = call.of;
    if (call.a_gradient && tile.row_in())
      call.a_gradient[tile.problem.index * of.rows + tile.line] = tile.shared->a_gradient[tile.line];
    if (call.b_gradient && tile.column_in())
      call.b_gradient[tile.problem.index * of.columns + tile.line] = tile.shared->b_gradient[tile.line];
  }

 private:
  KD_DEVICE const double* offsets(int slot) const {
    return line_of(call.offsets, tile.problem.index, 3, slot, call.of.rows + call.of.columns);
  }

  KD_DEVICE bool frames_differ() const {  // A and B, in the thread's row or column
    const double *first = offsets(0), *second = offsets(1);
    const int64_t column = call.of.rows + tile.line;
    return (tile.row_in() && first[tile.line] != second[tile.line]) ||
           (tile.column_in() && first[column] != second[column]);
  }

  KD_DEVICE bool in_second_frame(int t) const { return t == 1 && jumped; }

  KD_DEVICE void take_offsets(int slot) const {
    const double* at = offsets(slot);
    tile.publish(tile.shared->row_offset, tile.row_in() ? at[tile.line] : 0.0);
    tile.publish(tile.shared->column_offset, tile.column_in() ? at[call.of.rows + tile.line] : 0.0);
  }

  KD_DEVICE void take_scalings(int t, float* of_row, float* of_column) const {
    const int64_t width = call.of.rows + call.of.columns;
    const float* at = line_of(call.history, tile.problem.index, call.of.iterations, t - 1, width);
    *of_row = t > 0 && tile.line < tile.problem.rows ? at[tile.line] : 0.0f;
    *of_column = t > 0 && tile.line < tile.problem.columns ? at[call.of.rows + tile.line] : 0.0f;
  }

  KD_DEVICE bool has_drifted(float of_row, float of_column) const {
    return (drifted_lanes(tile.a(), of_row) | drifted_lanes(tile.b(), of_column)) != 0;
  }

  // From the frame after iteration t to its own, where the scalings were absorbed in between.
  KD_DEVICE void release(int t, float rho, float sigma) const {
    if (t == 1) {
      take_offsets(1);  // exactly, whatever was rounded on the way
    } else {
      tile.move_row_offset(rho, -1);
      tile.move_column_offset(sigma, -1);
    }
  }

  template <class Body> KD_DEVICE void for_entries(Body body) const {
#pragma unroll
    for (int e = 0; e < kEntries; ++e) {
      tile.pause(e);
      body(e, tile.entry(e));
    }
  }

  // G = dL/dP beside the explicit cost, less the centre of its column, in the place of the costs. The difference is
  // rounded once: of numbers much larger than eps it would lose the digits that count.
  KD_DEVICE void derive(float upstream) const {
    const float* asked = call.plan_upstream;
    if (asked) asked += tile.problem.index * call.of.rows * call.of.columns;
#pragma unroll 4
    for (int k = tile.thread; k < kSize * kSize; k += T::kThreads) {
      const int i = k / kSize, j = k % kSize;
      float& entry = tile.shared->cost[i * T::kPitch + j];
      float g = 0.0f;
      if (entry != kInfinity) {  // something can be sent
        const float centre = tile.shared->centre[j];
        g = call.of.entropic ? float(double(upstream) * (tile.shared->f[i] + tile.shared->g[j]) - double(centre))
                             : fma(upstream, entry, -centre);
        if (asked) g += asked[i * call.of.columns + j];
      }
      entry = g;
    }
  }

  KD_DEVICE void publish_rows(int t, float rho) const {
    tile.publish(tile.shared->rho, rho);
    tile.publish(tile.shared->x[t % 2], scaled(tile.a(), rho, in_second_frame(t)));
  }

  // y' and the gradient of b, from y and beta of an iteration.
  KD_DEVICE void publish_columns(float y, float beta) const {
    if (tile.part != 0) return;
    tile.shared->y[tile.line] = y * beta;
    tile.shared->b_gradient[tile.line] += beta;
  }

  // alpha = rho (G K y), beta = sigma (G^T K x) and the first of the pairs, x y^T (dV - G / eps), all with the columns
  // of G centred: what G has in common there changes nothing but dL/db.
  KD_DEVICE void begin(int last) {
    const float upstream = call.upstream[tile.problem.index];
    const float* const xs = tile.shared->x[last % 2];
    const float x = xs[tile.line], y = tile.shared->y[tile.line];
    float rho, sigma;
    take_scalings(last, &rho, &sigma);
    const double f = potential(tile.shared->row_offset[tile.line], x, tile.problem.eps);
    const double g = potential(tile.shared->column_offset[tile.line], y, tile.problem.eps);
    tile.publish(tile.shared->f, x == 0.0f ? 0.0 : f);
    tile.publish(tile.shared->g, y == 0.0f ? 0.0 : g);
    tile.sync();
    float mean = 0.0f;
    for_entries([&](int e, int i) KD_LAMBDA {
      const float k = tile.in_column[e];
      const float of_value = call.of.entropic ? float(tile.shared->f[i]) : tile.cost_in_column(e);
      mean = fma(k == 0.0f ? 0.0f : of_value * k, xs[i], mean);
    });
    const float value_centre =
        upstream * (tile.whole(mean) * sigma + (call.of.entropic && y != 0.0f ? float(g) : 0.0f));
    tile.publish(tile.shared->centre, value_centre);
    tile.sync();
    derive(upstream);
    tile.sync();
    // What is asked of the plan itself may have more in common.
    float rest_of_mean = 0.0f;
    for_entries([&](int e, int i)
                    KD_LAMBDA { rest_of_mean = fma(tile.cost_in_column(e) * tile.in_column[e], xs[i], rest_of_mean); });
    const float centre = tile.whole(rest_of_mean) * sigma;
    tile.publish(tile.shared->centre, centre);
    tile.sync();
    float of_row = 0.0f, of_column = 0.0f;
    for_entries([&](int e, int j) KD_LAMBDA {
      const float rest = tile.cost_in_row(e) - tile.shared->centre[j];
      of_row = fma(rest * tile.in_row[e], tile.shared->y[j], of_row);
    });
    const float explicit_part = upstream * float(tile.problem.eps);
    for_entries([&](int e, int i) KD_LAMBDA {
      const float rest = tile.cost_in_column(e) - centre;
      of_column = fma(rest * tile.in_column[e], xs[i], of_column);
      pairs[e] = xs[i] * y * (explicit_part - rest);
    });
    tile.publish(tile.shared->alpha, relative(rho, in_second_frame(last)) * tile.whole(of_row));
    kept = false;
    tile.publish(tile.shared->a_gradient, 0.0f);
    tile.publish(tile.shared->b_gradient, value_centre + centre);
    tile.sync();  // y is no more read
    publish_columns(y, sigma * tile.whole(of_column));
  }

  // pairs += x y'^T + z y^T; -> (K^T z)_j.
  KD_DEVICE float gather(const float* scalings, float weight, const float* z, float column_scaling) {
    const float4* xs = reinterpret_cast<const float4*>(scalings) + tile.part;
    const float4* zs = reinterpret_cast<const float4*>(z) + tile.part;
    float sum[4] = {};
#pragma unroll
    for (int e = 0; e < kEntries; e += 4) {
      const float4 u = xs[e / 4 * T::kShare], v = zs[e / 4 * T::kShare];
      const float of_x[4] = {u.x, u.y, u.z, u.w}, of_z[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
      for (int q = 0; q < 4; ++q) {
        sum[q] = fma(tile.in_column[e + q], of_z[q], sum[q]);
        pairs[e + q] = fma(of_x[q], weight, fma(of_z[q], column_scaling, pairs[e + q]));
      }
    }
    return tile.whole((sum[0] + sum[1]) + (sum[2] + sum[3]));
  }

  // What this frame adds to the gradient of the cost, K * pairs / eps: to `total`, or at last to its place.
  KD_DEVICE void settle(bool last) {
    const float inverse_eps = float(1.0 / tile.problem.eps);
    for_entries([&](int e, int) KD_LAMBDA { tile.cost_in_column(e) = tile.in_column[e] * pairs[e] * inverse_eps; });
    tile.sync();
    const int64_t begin = tile.problem.index * call.of.rows * call.of.columns;
    tile.for_matrix([&](int i, int j, float gradient) KD_LAMBDA {
      const int64_t at = begin + i * call.of.columns + j;
      if (kept) gradient += call.total[at];
      if (!last) {
        call.total[at] = gradient;
      } else {
        store(call.of.dtype, call.cost_gradient, at, gradient);
      }
    });
    tile.sync();
    kept = true;
  }

  const SinkhornBackwardCall& call;
  T tile;
  bool jumped;  // from frame A to frame B, in the first iteration
  bool kept;    // whether there is something in `total`
  float pairs[kEntries];
};

template <int kSize, int kEntries> __global__ void __launch_bounds__(Tile<kSize, kEntries>::kBlock)
    sinkhorn_tile_backward_kernel(const SinkhornBackwardCall call) {
  const int64_t problem = tile_problem<kSize, kEntries>(call.of);
  if (problem >= 0) TileReverse<kSize, kEntries>(call).run(problem);
}

}  // namespace kd::cuda
