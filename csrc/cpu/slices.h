// Divergences of rows that arrive in slices of the vocabulary: what one slice gives, and what it needs to know of the
// whole row. kd_kernels/chunks/slices.py merges the one into the other.
#pragma once

#include "rows.h"

namespace kd {

enum class SlicePass : int {
  kStatistics = 0,  // writes `statistics`
  kSums = 1,        // from `state`, writes `sums`
  kGradient = 2,    // from `state`, `h_sum` and `factor`, writes `grad`
};

// Rows of a [kCount, rows] tensor, in the order of the tuples of kd_kernels/slice_rows.py, which say what each
// holds.
struct SliceStatistic {
  enum : int {
    kTopStudent,
    kTopTeacher,
    kSumStudent,
    kSumTeacher,
    kShiftStudent,
    kShiftTeacher,
    kGap,
    kResidue,
    kForward,
    kReverse,
    kStudentEntropy,
    kTeacherEntropy,
    kCount
  };
};

struct SliceState {
  enum : int {
    kTopStudent,
    kTopTeacher,
    kInverseStudent,
    kInverseTeacher,
    kShiftStudent,
    kShiftTeacher,
    kGap,
    kForwardWeight,
    kReverseWeight,
    kFar,
    kHSum,
    kCount
  };
};

struct SliceCall {
  SlicePass pass;
  int64_t rows;
  int64_t columns;  // of this slice
  Matrix student, teacher;
  Matrix grad;           // of the student's dtype; it may overwrite the student's logits
  const double* weight;  // [rows] or null; a row of weight 0 is not read
  double inverse_temperature_student, inverse_temperature_teacher;
  Family family;  // other than kAkl, which is a kKl once its weights are known
  double param;   // of the family; a KL has weights in its state
  bool entropies;
  double* statistics;    // [SliceStatistic::kCount, rows]
  const double* state;   // [SliceState::kCount, rows]
  double* sums;          // [2, rows]: of value and of h
  const double* factor;  // [rows]: of the gradient, 1 / T included
};

// One row of one pass. `scratch` holds kScratchRows rows of double or float, as the logits are.
using SliceFunction = void (*)(const SliceCall& call, int64_t row, void* scratch);

SliceFunction slice_function_scalar(DType student, DType teacher);
SliceFunction slice_function_avx2(DType student, DType teacher);
SliceFunction slice_function_avx512(DType student, DType teacher);

}  // namespace kd
