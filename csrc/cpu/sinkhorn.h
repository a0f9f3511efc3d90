// Batched Sinkhorn iterations: what a caller hands over, and what one problem needs.
#pragma once

#include <cstddef>

#include "rows.h"

namespace kd {

struct Batch {  // of matrices, each with contiguous rows
  Matrix first;
  int64_t stride;  // from one matrix to the next, in elements
};

struct SinkhornProblems {
  int64_t problems, rows, columns;
  Batch cost;
  const void* a;           // Real[problems][rows] or null: ones
  const void* b;           // Real[problems][columns] or null
  const double* eps;       // [problems]
  const int64_t* lengths;  // [problems][2]: rows and columns of each, or null: all
  int64_t iterations;      // at most, and at least one
  bool entropic;           // the value: <P, C> - eps h(P), otherwise <P, C>
};  // Real is double for float64 costs, else float

struct SinkhornCall {
  SinkhornProblems of;
  const void* start;  // Real[problems][columns]: potentials to begin with, or null: zeros
  double tolerance;   // negative: none
  void* value;        // Real[problems]
  void* f;            // Real[problems][rows]
  void* g;            // Real[problems][columns]
  void* plan;         // Real[problems][rows][columns] or null
  int64_t* run;       // [problems]
  void* error;        // Real[problems]
  void* history;      // Real[problems][iterations][rows + columns] or null; see sinkhorn_frame.h
  double* offsets;    // [problems][3][rows + columns] or null
};

struct SinkhornBackwardCall {
  SinkhornProblems of;
  const void* upstream;       // Real[problems]
  const void* plan_upstream;  // Real[problems][rows][columns] or null
  const int64_t* run;
  const void* history;
  const double* offsets;
  void* cost_gradient;  // [problems][rows][columns] of the cost's dtype, or null
  void* a_gradient;     // Real[problems][rows] or null
  void* b_gradient;     // Real[problems][columns] or null
};

// Solves problem `problem`; `scratch` has room for sinkhorn_scratch bytes.
using SinkhornFunction = void (*)(const SinkhornCall& call, int64_t problem, void* scratch);
using SinkhornBackwardFunction = void (*)(const SinkhornBackwardCall& call, int64_t problem, void* scratch);

// Rank-one terms that the backward pass gathers before it adds them up.
constexpr int64_t kSinkhornTerms = 48;

// Entries from one row of K to the next, and of vectors beside them: whole cache lines.
inline int64_t sinkhorn_pitch(int64_t columns) { return (columns + 15) / 16 * 16; }

inline size_t sinkhorn_scratch(const SinkhornProblems& of) {
  const size_t item = of.cost.first.dtype == DType::kFloat64 ? sizeof(double) : sizeof(float);
  const size_t rows = size_t(sinkhorn_pitch(of.rows)), columns = size_t(sinkhorn_pitch(of.columns));
  return item * (size_t(of.rows) * columns + 5 * rows + 4 * columns) + sizeof(double) * (rows + columns);
}

inline size_t sinkhorn_backward_scratch(const SinkhornProblems& of) {
  const size_t item = of.cost.first.dtype == DType::kFloat64 ? sizeof(double) : sizeof(float);
  const size_t rows = size_t(sinkhorn_pitch(of.rows)), columns = size_t(sinkhorn_pitch(of.columns));
  return item * (2 * size_t(of.rows) * columns + (5 + kSinkhornTerms) * rows + (7 + kSinkhornTerms) * columns) +
         sizeof(double) * (rows + columns);
}

SinkhornFunction sinkhorn_function_scalar(DType cost);
SinkhornFunction sinkhorn_function_avx2(DType cost);
SinkhornFunction sinkhorn_function_avx512(DType cost);
SinkhornBackwardFunction sinkhorn_backward_function_scalar(DType cost);
SinkhornBackwardFunction sinkhorn_backward_function_avx2(DType cost);
SinkhornBackwardFunction sinkhorn_backward_function_avx512(DType cost);

}  // namespace kd
