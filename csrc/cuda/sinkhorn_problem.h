// What every Sinkhorn kernel asks of a problem: its size, costs in float, logarithms.
#pragma once

#include <type_traits>

#include "kd/elementary.h"
#include "kd/sinkhorn.h"
#include "primitives.h"
#include "sinkhorn.h"

namespace kd::cuda {

constexpr unsigned kAllLanes = 0xffffffffu;
constexpr float kInfinity = __builtin_huge_valf();

struct BFloat16Cost {
  uint16_t bits;
};
struct HalfCost {
  uint16_t bits;
};
KD_DEVICE float as_float(float x) { return x; }
KD_DEVICE float as_float(BFloat16Cost x) { return from_bfloat16(x.bits); }
KD_DEVICE float as_float(HalfCost x) { return from_half(x.bits); }

struct Problem {
  int64_t index;
  int rows, columns;
  double eps;

  KD_DEVICE Problem(const SinkhornProblems& of, int64_t problem)
      : index(problem),
        rows(static_cast<int>(of.lengths ? of.lengths[2 * problem] : of.rows)),
        columns(static_cast<int>(of.lengths ? of.lengths[2 * problem + 1] : of.columns)),
        eps(of.eps[problem]) {}
};

KD_DEVICE float row_mass(const SinkhornProblems& of, const Problem& problem, int i) {
  if (i >= problem.rows) return 0.0f;
  return of.a ? of.a[problem.index * of.rows + i] : 1.0f;
}

KD_DEVICE float column_mass(const SinkhornProblems& of, const Problem& problem, int j) {
  if (j >= problem.columns) return 0.0f;
  return of.b ? of.b[problem.index * of.columns + j] : 1.0f;
}

template <class T> struct CostMatrix {
  const T* first;
  int64_t row_stride, column_stride;
  KD_DEVICE float operator()(int i, int j) const { return as_float(first[i * row_stride + j * column_stride]); }
};

// Calls body(costs) for costs(i, j) of the problem: loops inside the body have no switch in them.
template <class Body> KD_DEVICE void with_costs(const SinkhornProblems& of, const Problem& problem, Body body) {
  const int64_t begin = problem.index * of.problem_stride;
  const auto run = [&](auto* first) {
    body(CostMatrix<std::remove_const_t<std::remove_pointer_t<decltype(first)>>>{first + begin, of.row_stride,
                                                                                 of.column_stride});
  };
  if (of.dtype == DType::kFloat32) {
    run(static_cast<const float*>(of.cost));
  } else if (of.dtype == DType::kBFloat16) {
    run(static_cast<const BFloat16Cost*>(of.cost));
  } else {
    run(static_cast<const HalfCost*>(of.cost));
  }
}

KD_DEVICE void store(DType dtype, void* out, int64_t at, float x) {
  if (dtype == DType::kFloat32) {
    static_cast<float*>(out)[at] = x;
  } else {
    static_cast<uint16_t*>(out)[at] = dtype == DType::kBFloat16 ? to_bfloat16(x) : to_half(x);
  }
}

// log x for x > 0, subnormal ones included: to 1e-7 absolute near 1 and relative elsewhere. Only the part of the
// mantissa is single precision.
KD_DEVICE double logarithm(float x) {
  constexpr float kLeast = 1.17549435e-38f, kLift = 16777216.0f;  // 2^24
  const bool subnormal = x < kLeast;
  const float u = subnormal ? x * kLift : x;
  const float n = exponent(u * 1.41421356f);
  const float f = fma(u, pow2(-n), -1.0f);
  return double(subnormal ? n - 24.0f : n) * kLnBase<float> + double(f - log_bend(f));
}

// An offset with a scaling taken up, or given back for direction -1.
KD_DEVICE double moved(double offset, float scaling, double eps, double direction = 1) {
  return scaling > 0.0f ? offset + direction * eps * logarithm(scaling) : offset;
}

// The potential of a line scaled by x: -inf where nothing is sent.
KD_DEVICE double potential(double offset, float x, double eps) {
  return x == 0.0f ? -double(kInfinity) : offset + eps * logarithm(x);
}

KD_DEVICE double add_lanes(double x) {
  for (int distance = 16; distance > 0; distance /= 2) x += __shfl_xor_sync(kAllLanes, x, distance);
  return x;
}

KD_DEVICE float add_lanes(float x) {
  for (int distance = 16; distance > 0; distance /= 2) x += __shfl_xor_sync(kAllLanes, x, distance);
  return x;
}

// Where the vectors of rows and columns of a slot begin: all[problems][slots][width].
template <class X> KD_DEVICE X* line_of(X* all, int64_t of_problem, int64_t slots, int64_t slot, int64_t width) {
  return all + (of_problem * slots + slot) * width;
}

}  // namespace kd::cuda
