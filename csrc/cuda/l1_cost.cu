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

// A small tile computes fewer pairs that do not exist, a large one makes fewer probabilities: of a large tile they cost
// a twentieth of what the pairs do, of a small one a fifth.
L1Cut l1_cut(int rows, int others, int columns, int64_t threads) {
  const auto tiles = [&](int64_t tile) { return ceil_div<int64_t>(rows, tile) * ceil_div<int64_t>(others, tile); };
  const bool large = tiles(128) * 128 * 128 * 105 <= tiles(32) * 32 * 32 * 120;
  const int tile = large ? 128 : 32;
  const int64_t of_tile = large ? L1Tiling<128>::kThreads : L1Tiling<32>::kThreads;
  const int64_t wanted = ceil_div(threads, std::max<int64_t>(1, tiles(tile)) * of_tile);
  const int64_t possible = std::min<int64_t>(wanted, ceil_div(columns, kL1Chain));
  const int width = static_cast<int>(ceil_div<int64_t>(columns, possible * kL1Chain)) * kL1Chain;
  const int ranges = ceil_div(columns, width);
  return {tile, ranges, width, ranges * tiles(tile) * tile * tile};
}

void l1_statistics(const L1Problems& of, void* stream) {
  const int64_t rows = of.problems * (of.student.rows + of.teacher.rows);
  if (rows == 0) return;
  by_entry_bytes(of.dtype, [&](auto bytes) {
    launch(l1_statistics_kernel<bytes()>, grid_of(rows), kL1RowThreads, kWarpSums, 1, stream, of);
  });
}

void l1_cost(const L1Problems& of, const L1Cut& cut, float* sums, float* cost, void* stream) {
  const int64_t all = cut.sums * of.problems;
  if (all == 0) return;
  const auto run = [&](auto bytes, auto tile) {
    using Steps = L1Steps<bytes(), tile()>;
    constexpr int64_t kSums = tile() * tile();
    launch(l1_cost_kernel<bytes(), tile()>, grid_of(all / kSums), L1Tiling<tile()>::kThreads, Steps::kSharedBytes, 1,
           stream, of, cut.width, sums);
    launch(l1_sum_kernel<tile()>, grid_of(all / cut.ranges / 32), kL1SumThreads, kL1SumThreads * sizeof(float), 1,
           stream, of, cut.ranges, sums, cost);
  };
  by_entry_bytes(of.dtype, [&](auto bytes) {
    if (cut.tile == 128) {
      run(bytes, std::integral_constant<int, 128>());
    } else {
      run(bytes, std::integral_constant<int, 32>());
    }
  });
}

void l1_cost_backward(const L1Problems& of, const L1Backward& backward, void* stream) {
  if (backward.tiles == 0 || backward.width == 0) return;
  by_entry_bytes(of.dtype, [&](auto bytes) {
    const int span = of.softmax ? of.columns : backward.width;
    const dim3 gains = grid_of(backward.tiles * ceil_div(span, kL1GainColumns));
    if (!of.softmax) {
      launch(l1_gain_kernel<bytes(), false>, gains, kL1GainThreads, L1GainSteps<bytes()>::kSharedBytes, 1, stream, of,
             backward);
      return;
    }
    launch(l1_gain_kernel<bytes(), true>, gains, kL1GainThreads, L1GainSteps<bytes()>::kSharedBytes, 1, stream, of,
           backward);
    const int64_t lines = backward.tiles * kL1GainRows;
    launch(l1_gradient_kernel<bytes()>, grid_of(lines * ceil_div(backward.width, kL1GradientColumns)), kL1RowThreads,
           kWarpSums, 1, stream, of, backward);
  });
}

}  // namespace kd
