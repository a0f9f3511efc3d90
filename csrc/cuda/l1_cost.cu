#include <algorithm>

#include "l1_cost.h"
#include "l1_cost_kernel.h"
#include "l1_gradient_kernel.h"
#include "l1_statistics_kernel.h"
#include "launch.h"

namespace kd {
namespace {

template <class X> X ceil_div(X a, X b) { return (a + b - 1) / b; }

// f(the size of an entry as a type).
template <class Function> void by_entry_bytes(DType dtype, Function f) {
  if (dtype == DType::kFloat32) {
    f(std::integral_constant<int, 4>());
  } else {
    f(std::integral_constant<int, 2>());
  }
}

dim3 grid_of(int64_t blocks) { return dim3(static_cast<unsigned>(blocks)); }

constexpr int kWarpSums = 32 * static_cast<int>(sizeof(float));

}  // namespace

// A small tile computes no pairs that do not exist, a large one makes fewer probabilities: of a large tile that cost is
// a twentieth of the pairs', of a small one a fifth. Where tiles are few, their columns are shared by as many blocks as
// give two of 256 threads to every multiprocessor of a large GPU.
L1Cut l1_cut(int rows, int others, int columns) {
  constexpr int64_t kThreads = 264 * 256;
  const auto tiles = [&](int64_t tile) { return ceil_div<int64_t>(rows, tile) * ceil_div<int64_t>(others, tile); };
  const bool large = tiles(128) * 128 * 128 * 105 <= tiles(32) * 32 * 32 * 120;
  const int64_t threads = large ? L1Tiling<128>::kThreads : L1Tiling<32>::kThreads;
  const int64_t wanted = ceil_div(kThreads, std::max<int64_t>(1, tiles(large ? 128 : 32)) * threads);
  const int64_t ranges = std::max<int64_t>(1, std::min<int64_t>(wanted, ceil_div(columns, kL1Chain)));
  const int width = static_cast<int>(ceil_div<int64_t>(columns, ranges * kL1Chain)) * kL1Chain;
  return {large ? 128 : 32, std::max(1, ceil_div(columns, width)), width};
}

void l1_statistics(const L1Problems& of, void* stream) {
  const int64_t rows = of.problems * (of.student.rows + of.teacher.rows);
  if (rows == 0) return;
  by_entry_bytes(of.dtype, [&](auto bytes) {
    launch(l1_statistics_kernel<bytes()>, grid_of(rows), kL1RowThreads, kWarpSums, 1, stream, of);
  });
}

void l1_cost(const L1Problems& of, float* partials, float* cost, void* stream) {
  const int64_t costs = of.problems * of.student.rows * of.teacher.rows;
  if (costs == 0) return;
  const L1Cut cut = l1_cut(of.student.rows, of.teacher.rows, of.columns);
  float* out = cut.ranges > 1 ? partials : cost;
  const int64_t blocks =
      cut.ranges * of.problems * ceil_div(of.student.rows, cut.tile) * ceil_div(of.teacher.rows, cut.tile);
  by_entry_bytes(of.dtype, [&](auto bytes) {
    if (cut.tile == 128) {
      launch(l1_cost_kernel<bytes(), 128>, grid_of(blocks), L1Tiling<128>::kThreads, L1Tiling<128>::kSharedBytes, 1,
             stream, of, cut.width, out);
    } else {
      launch(l1_cost_kernel<bytes(), 32>, grid_of(blocks), L1Tiling<32>::kThreads, L1Tiling<32>::kSharedBytes, 1,
             stream, of, cut.width, out);
    }
  });
  if (cut.ranges > 1) {
    launch(l1_sum_kernel, grid_of(ceil_div<int64_t>(costs, 32)), kL1SumThreads, kL1SumThreads * sizeof(float), 1,
           stream, partials, cut.ranges, costs, cost);
  }
}

void l1_cost_backward(const L1Problems& of, const L1Backward& backward, void* stream) {
  if (backward.tiles == 0 || backward.width == 0) return;
  by_entry_bytes(of.dtype, [&](auto bytes) {
    const int span = of.softmax ? of.columns : backward.width;
    const dim3 gains = grid_of(backward.tiles * ceil_div(span, kL1GainColumns));
    if (!of.softmax) {
      launch(l1_gain_kernel<bytes(), false>, gains, kL1GainThreads, kL1GainSharedBytes, 1, stream, of, backward);
      return;
    }
    launch(l1_gain_kernel<bytes(), true>, gains, kL1GainThreads, kL1GainSharedBytes, 1, stream, of, backward);
    const int64_t lines = backward.tiles * kL1GainRows;
    launch(l1_gradient_kernel<bytes()>, grid_of(lines * ceil_div(backward.width, kL1GradientColumns)), kL1RowThreads,
           kWarpSums, 1, stream, of, backward);
  });
}

}  // namespace kd
