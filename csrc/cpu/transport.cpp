#include "transport.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "driver.h"
#include "gradient_memory.h"
#include "parallel.h"

namespace kd {
namespace {

// The function for the instruction set in use; float64 has the scalar one alone.
template <class Function, class... Args> Function at_level([[maybe_unused]] Function (*avx512)(Args...),
                                                           [[maybe_unused]] Function (*avx2)(Args...),
                                                           Function (*scalar)(Args...), DType dtype, Args... args) {
#if defined(KD_X86)
  if (dtype != DType::kFloat64) {
    if (simd() == Simd::kAvx512) return avx512(args...);
    if (simd() == Simd::kAvx2) return avx2(args...);
  }
#endif
  return scalar(args...);
}

#if defined(KD_X86)
#define KD_AT_LEVEL(name, dtype, ...) at_level(name##_avx512, name##_avx2, name##_scalar, dtype, __VA_ARGS__)
#else
#define KD_AT_LEVEL(name, dtype, ...) at_level(name##_scalar, name##_scalar, name##_scalar, dtype, __VA_ARGS__)
#endif

double work_of(const SinkhornProblems& of) {
  return double(of.problems) * double(of.rows) * double(of.columns) * double(of.iterations);
}

// Tiles of kL1Rows rows that count, of all problems, and the rows they point to.
struct Tiles {
  std::vector<std::vector<int64_t>> rows, others;  // by problem
  std::vector<L1Tile> tiles;
};

std::vector<int64_t> counted(const uint8_t* mask, int64_t problem, int64_t size) {
  std::vector<int64_t> rows;
  for (int64_t i = 0; i < size; ++i)
    if (!mask || mask[problem * size + i]) rows.push_back(i);
  return rows;
}

Tiles tiles_of(const L1Call& call) {
  Tiles result;
  result.rows.resize(size_t(call.problems));
  result.others.resize(size_t(call.problems));
  for (int64_t b = 0; b < call.problems; ++b) {
    auto &rows = result.rows[size_t(b)], &others = result.others[size_t(b)];
    rows = counted(call.student_mask, b, call.rows);
    others = counted(call.teacher_mask, b, call.others);
    for (size_t i = 0; i < rows.size(); i += kL1Rows) {
      result.tiles.push_back(
          {b, rows.data() + i, std::min(kL1Rows, int64_t(rows.size() - i)), others.data(), int64_t(others.size())});
    }
  }
  return result;
}

int64_t blocks_of(const L1Call& call) { return (call.columns + kL1Block - 1) / kL1Block; }

// Tiles to work on at a time, when each needs `bytes` beside its inputs.
int64_t wave_of(size_t bytes) { return std::max<int64_t>(1, int64_t((size_t{64} << 20) / std::max<size_t>(bytes, 1))); }

template <class Real> void l1_cost(const L1Call& call, const L1Functions& functions, int threads) {
  const int64_t rows = call.problems * (call.rows + call.others);
  const auto statistics = [&](int64_t row, void*) { functions.statistics(call, row); };
  if (call.softmax) {
    for_each_item(rows, team_for(rows, double(rows) * double(call.columns), threads), 1, 0, statistics);
  }
  Real* cost = static_cast<Real*>(call.cost);
  std::fill(cost, cost + call.problems * call.rows * call.others, Real(0));

  const Tiles all = tiles_of(call);
  const int64_t blocks = blocks_of(call), splits = std::min(kL1Splits, blocks);
  const int64_t size = kL1Rows * call.others;  // of a tile's costs
  const int64_t wave = wave_of(size_t(splits * size) * sizeof(Real));
  std::vector<Real> parts(size_t(std::min<int64_t>(wave, int64_t(all.tiles.size())) * splits * size));
  for (int64_t first = 0; first < int64_t(all.tiles.size()); first += wave) {
    const int64_t count = std::min(wave, int64_t(all.tiles.size()) - first), items = count * splits;
    const double work = double(count) * double(size) * double(call.columns);
    for_each_item(items, team_for(items, work, threads), 1, l1_scratch(sizeof(Real) == 8),
                  [&](int64_t item, void* scratch) {
                    const int64_t split = item % splits;
                    functions.cost(call, all.tiles[size_t(first + item / splits)], split * blocks / splits,
                                   (split + 1) * blocks / splits, parts.data() + item * size, scratch);
                  });
    for (int64_t t = 0; t < count; ++t) {
      const L1Tile& tile = all.tiles[size_t(first + t)];
      for (int64_t i = 0; i < tile.count; ++i) {
        Real* row = cost + (tile.problem * call.rows + tile.rows[i]) * call.others;
        for (int64_t j = 0; j < tile.other_count; ++j) {
          double sum = 0;
          for (int64_t s = 0; s < splits; ++s) sum += parts[size_t((t * splits + s) * size + i * tile.other_count + j)];
          row[tile.others[j]] = Real(sum);
        }
      }
    }
  }
}

// upstream of a tile as [others][kL1Rows], 0 for rows it lacks, and minus the sums of its rows.
template <class Real> void transpose_upstream(const L1Call& call, const L1Tile& tile, Real* out) {
  std::fill(out, out + (tile.other_count + 1) * kL1Rows, Real(0));
  for (int64_t i = 0; i < tile.count; ++i) {
    const Real* row = static_cast<const Real*>(call.upstream) + (tile.problem * call.rows + tile.rows[i]) * call.others;
    double total = 0;
    for (int64_t j = 0; j < tile.other_count; ++j) {
      out[j * kL1Rows + i] = row[tile.others[j]];
      total += double(row[tile.others[j]]);
    }
    out[tile.other_count * kL1Rows + i] = Real(-total);
  }
}

void clear_masked_rows(const L1Call& call, size_t item) {
  const size_t bytes = size_t(call.width) * item;
  for (int64_t i = 0; call.student_mask && i < call.problems * call.rows; ++i)
    if (!call.student_mask[i]) std::memset(static_cast<char*>(call.gradient) + size_t(i) * bytes, 0, bytes);
}

class KeptPages {
 public:
  explicit KeptPages(size_t bytes) : pages_(bytes > 0 ? take_pages(bytes) : Pages{nullptr, 0}) {}
  ~KeptPages() {
    if (pages_.data) give_pages(pages_);  // nothing would take the place of what is kept
  }
  KeptPages(const KeptPages&) = delete;
  KeptPages& operator=(const KeptPages&) = delete;
  void* data() const { return pages_.data; }

 private:
  Pages pages_;
};

template <class Real> void l1_cost_backward(const L1Call& call, const L1Functions& functions, int threads) {
  const Tiles all = tiles_of(call);
  const int64_t blocks = blocks_of(call), size = kL1Rows * (call.others + 1);
  const size_t item = call.student.first.dtype == DType::kFloat64   ? 8
                      : call.student.first.dtype == DType::kFloat32 ? 4
                                                                    : 2;
  clear_masked_rows(call, item);
  // The derivative by the probabilities goes where the gradient will be if that is as wide.
  const size_t derivative_bytes =
      call.softmax && item < sizeof(Real) ? size_t(kL1Rows * call.columns) * sizeof(Real) : size_t{0};
  const int64_t wave = std::min(wave_of(derivative_bytes + size_t(size + blocks * kL1Rows) * sizeof(Real)),
                                std::max<int64_t>(1, int64_t(all.tiles.size())));
  std::vector<Real> upstream(size_t(wave * size)), sums(size_t(wave * blocks * kL1Rows));
  const KeptPages pages(size_t(wave) * derivative_bytes);
  const auto derivative_of = [&](int64_t t) {
    return derivative_bytes ? static_cast<char*>(pages.data()) + size_t(t) * derivative_bytes : nullptr;
  };
  for (int64_t first = 0; first < int64_t(all.tiles.size()); first += wave) {
    const int64_t count = std::min(wave, int64_t(all.tiles.size()) - first);
    const double work = double(count) * double(size) * double(call.columns);
    for (int64_t t = 0; t < count; ++t)
      transpose_upstream(call, all.tiles[size_t(first + t)], upstream.data() + t * size);
    for_each_item(count * blocks, team_for(count * blocks, work, threads), 1, l1_scratch(sizeof(Real) == 8),
                  [&](int64_t i, void* scratch) {
                    const int64_t t = i / blocks;
                    functions.derivative(call, all.tiles[size_t(first + t)], i % blocks, upstream.data() + t * size,
                                         derivative_of(t), sums.data() + i * kL1Rows, scratch);
                  });
    const auto finish_row = [&](int64_t i, void*) {
      const int64_t t = i / kL1Rows, row = i % kL1Rows;
      const L1Tile& tile = all.tiles[size_t(first + t)];
      if (row >= tile.count) return;
      double sum = 0;
      for (int64_t b = 0; b < blocks; ++b) sum += double(sums[size_t((t * blocks + b) * kL1Rows + row)]);
      functions.finish(call, tile, row, derivative_of(t), sum);
    };
    const int64_t rows = count * kL1Rows;
    for_each_item(rows, team_for(rows, double(rows) * double(call.columns), threads), 1, 0, finish_row);
  }
}

}  // namespace

void run_sinkhorn(const SinkhornCall& call, int threads) {
  const SinkhornFunction solve = KD_AT_LEVEL(sinkhorn_function, call.of.cost.first.dtype, call.of.cost.first.dtype);
  for_each_item(call.of.problems, team_for(call.of.problems, work_of(call.of), threads), 1, sinkhorn_scratch(call.of),
                [&](int64_t problem, void* scratch) { solve(call, problem, scratch); });
}

void run_sinkhorn_backward(const SinkhornBackwardCall& call, int threads) {
  const SinkhornBackwardFunction reverse =
      KD_AT_LEVEL(sinkhorn_backward_function, call.of.cost.first.dtype, call.of.cost.first.dtype);
  for_each_item(call.of.problems, team_for(call.of.problems, work_of(call.of), threads), 1,
                sinkhorn_backward_scratch(call.of),
                [&](int64_t problem, void* scratch) { reverse(call, problem, scratch); });
}

void run_l1_cost(const L1Call& call, int threads) {
  const DType student = call.student.first.dtype, teacher = call.teacher.first.dtype;
  const L1Functions functions = KD_AT_LEVEL(l1_functions, student, student, teacher);
  student == DType::kFloat64 ? l1_cost<double>(call, functions, threads) : l1_cost<float>(call, functions, threads);
}

void run_l1_cost_backward(const L1Call& call, int threads) {
  const DType student = call.student.first.dtype, teacher = call.teacher.first.dtype;
  const L1Functions functions = KD_AT_LEVEL(l1_functions, student, student, teacher);
  student == DType::kFloat64 ? l1_cost_backward<double>(call, functions, threads)
                             : l1_cost_backward<float>(call, functions, threads);
}

void run_sorted_l1(const SortedCall& call, int threads) {
  const SortedFunction row = KD_AT_LEVEL(sorted_function, call.student.dtype, call.student.dtype, call.teacher.dtype);
  const double work = 32.0 * double(call.rows) * double(call.student_columns + call.teacher_columns);
  for_each_item(call.rows, team_for(call.rows, work, threads), 1, sorted_scratch(call),
                [&](int64_t i, void* scratch) { row(call, i, scratch); });
}

}  // namespace kd
