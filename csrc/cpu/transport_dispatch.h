// The functions of optimal transport for the dtypes of a call, in the register type of the file that includes this.
#pragma once

#include "l1_cost_kernel.h"
#include "sinkhorn_backward.h"
#include "sinkhorn_kernel.h"
#include "sorted_l1_kernel.h"

KD_BEGIN

template <class F> SinkhornFunction sinkhorn_function(DType cost) {
  switch (cost) {
    case DType::kFloat32: return solve_sinkhorn<F, float>;
    case DType::kBFloat16: return solve_sinkhorn<F, BFloat16>;
    case DType::kFloat16: return solve_sinkhorn<F, Half>;
    default: return nullptr;
  }
}

template <class F> SinkhornBackwardFunction sinkhorn_backward_function(DType cost) {
  switch (cost) {
    case DType::kFloat32: return reverse_sinkhorn<F, float>;
    case DType::kBFloat16: return reverse_sinkhorn<F, BFloat16>;
    case DType::kFloat16: return reverse_sinkhorn<F, Half>;
    default: return nullptr;
  }
}

template <class F, class Ts, class Result, template <class, class, class> class Make> Result of_teacher(DType teacher) {
  switch (teacher) {
    case DType::kFloat32: return Make<F, Ts, float>::result();
    case DType::kBFloat16: return Make<F, Ts, BFloat16>::result();
    case DType::kFloat16: return Make<F, Ts, Half>::result();
    default: return {};
  }
}

template <class F, class Result, template <class, class, class> class Make>
Result of_pair(DType student, DType teacher) {
  switch (student) {
    case DType::kFloat32: return of_teacher<F, float, Result, Make>(teacher);
    case DType::kBFloat16: return of_teacher<F, BFloat16, Result, Make>(teacher);
    case DType::kFloat16: return of_teacher<F, Half, Result, Make>(teacher);
    default: return {};
  }
}

template <class F, class Ts, class Tt> struct MakeL1 {
  static L1Functions result() { return l1_functions_of<F, Ts, Tt>(); }
};

template <class F, class Ts, class Tt> struct MakeSorted {
  static SortedFunction result() { return SortedRow<F, Ts, Tt>::run; }
};

template <class F> L1Functions l1_functions(DType student, DType teacher) {
  return of_pair<F, L1Functions, MakeL1>(student, teacher);
}

template <class F> SortedFunction sorted_function(DType student, DType teacher) {
  return of_pair<F, SortedFunction, MakeSorted>(student, teacher);
}

KD_END
