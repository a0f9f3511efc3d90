// One row of a divergence from start to end: which sweeps, in which order.
#pragma once

#include <type_traits>

#include "akl_split.h"
#include "kd/divergences/jsd.h"
#include "kd/divergences/kl.h"
#include "kd/divergences/mixture_kl.h"
#include "kd/divergences/todi.h"
#include "kd/divergences/tvd.h"
#include "row_sweeps.h"
#include "rows.h"

KD_BEGIN

// From this value on a difference of sums or probabilities, right to an epsilon or so absolute, is as good as any
// result in the same precision. Rows below it get the exact form.
constexpr double kFarRow = 1.0 / 64;

template <class F, class T, class U> struct RowKernel {  // T: logits as read, U: gradient as written
  using S = ScalarOf<F>;

  const T* zs;
  const T* zt;
  U* grad;  // null: value only
  int64_t n;
  S factor;  // of the gradient, 1 / T included
  Tempering<S> k;
  S* es;  // scratch: exponentials of the student, of the teacher, and two rows for AKL's selection
  S* et;
  S* spare[2];
  Normal<S> r;
  double student_entropy = 0, teacher_entropy = 0;

  double run(const RowsCall& call) {
    const double value = dispatch(call);
    if (r.defined) return value;
    // Minima and maxima drop a NaN, and so may a near row: it must show all the same.
    for (int64_t i = 0; grad != nullptr && i < n; ++i) narrow(static_cast<S>(NAN), grad + i);
    return NAN;
  }

 private:
  double dispatch(const RowsCall& call) {
    const bool entropies = call.student_entropy != nullptr;
    const S a = static_cast<S>(call.params[0]), b = static_cast<S>(1 - call.params[0]);
    switch (call.family) {
      case Family::kKl:
        if (call.params[1] == 0) return kl<true, false>(1, 0, entropies);
        if (call.params[0] == 0) return kl<false, true>(0, 1, entropies);
        return kl<true, true>(call.params[0], call.params[1], entropies);
      case Family::kAkl: return akl(call.params[0], entropies);
      case Family::kJsd: return three_sweeps(a * b, Jsd<Near, F>{F(a), F(b)}, Jsd<Far, F>{F(a), F(b)}, entropies);
      case Family::kTeacherMixture:
        return three_sweeps(a * a, MixtureKl<Near, F, false>{F(a), F(b)}, MixtureKl<Far, F, false>{F(a), F(b)},
                            entropies);
      case Family::kStudentMixture:
        return three_sweeps(b * b, MixtureKl<Near, F, true>{F(a), F(b)}, MixtureKl<Far, F, true>{F(a), F(b)},
                            entropies);
      case Family::kTvd: return tvd(entropies);
      case Family::kTodi:
        if (call.params[0] == 1) return three_sweeps(2, Todi<F, true>{F(a)}, FarTodi<F, true>{F(a)}, entropies);
        return three_sweeps(1 + a, Todi<F, false>{F(a)}, FarTodi<F, false>{F(a)}, entropies);
    }
    return NAN;
  }

  template <bool Forward, bool Reverse> void start(bool entropies) {
    r = normalise<F, Forward, Reverse>(zs, zt, n, k, es, et);
    if (!entropies) return;
    student_entropy = entropy<F>(zs, n, k.rate_student, r.offset_student, es, r.log_sum_student, r.inverse_student);
    teacher_entropy = entropy<F>(zt, n, k.rate_teacher, r.offset_teacher, et, r.log_sum_teacher, r.inverse_teacher);
  }

  template <Emit emit, class Divergence> TermSums emit_terms(const Divergence& divergence, double h_sum) {
    return terms<emit, F>(divergence, zs, zt, n, k, r, es, et, grad, factor, static_cast<S>(h_sum));
  }

  // The general way: sums of the terms, then the gradient from them.
  template <class Divergence> double sum_and_combine(const Divergence& divergence) {
    if (grad == nullptr) return emit_terms<Emit::kSums>(divergence, 0).value;
    const TermSums sums = emit_terms<Emit::kStash>(divergence, 0);
    combine<F>(et, es, n, factor, static_cast<S>(sums.h), r.inverse_student, grad);
    return sums.value;
  }

  template <class Divergence> double near_row(const Divergence& divergence) {
    refine_gap<F>(zs, zt, n, k, &r, es, et);
    return sum_and_combine(divergence);
  }

  // Where the sides are close any divergence is its curvature, f''(1), times the KL.
  template <class NearForm, class FarForm>
  double three_sweeps(double curvature, const NearForm& near, const FarForm& far, bool entropies) {
    start<true, false>(entropies);
    return curvature * r.forward >= kFarRow ? sum_and_combine(far) : near_row(near);
  }

  template <bool Forward, bool Reverse> double kl(double forward, double reverse, bool entropies) {
    start<Forward, Reverse>(entropies);
    return weighted_kl<Forward, Reverse>(forward, reverse);
  }

  // Far rows have their value, and what their gradient needs to know of the row: one sweep writes it.
  template <bool Forward, bool Reverse> double weighted_kl(double forward, double reverse) {
    const S w_f = static_cast<S>(forward), w_r = static_cast<S>(reverse);
    // A weight of zero leaves its side out even where that is infinite.
    const double value = (forward > 0 ? forward * r.forward : 0) + (reverse > 0 ? reverse * r.reverse : 0);
    if (!(value >= kFarRow)) return near_row(Kl<F, Forward, Reverse>{F(w_f), F(w_r)});
    if (grad == nullptr) return value;
    if (r.careful) {
      kl_gradient<Forward, Reverse, true, F>(zs, zt, n, k, r, es, et, w_f, w_r, factor, grad);
    } else {
      kl_gradient<Forward, Reverse, false, F>(zs, zt, n, k, r, es, et, w_f, w_r, factor, grad);
    }
    return value;
  }

  // h costs less to compute again than to keep.
  double tvd(bool entropies) {
    start<false, false>(entropies);
    const TermSums sums = emit_terms<Emit::kSums>(FarTvd<F>{}, 0);
    if (!(sums.value >= kFarRow)) return near_row(Tvd<F>{});
    if (grad != nullptr) emit_terms<Emit::kGradient>(FarTvd<F>{}, sums.h);
    return sums.value;
  }

  double akl(double mu, bool entropies) {
    start<true, true>(entropies);
    double head = 0.5;  // also where p = q, and where NaN logits leave nothing to split
    const double total = 1 / double(r.inverse_teacher);
    if (total > 0 && total < 1e38) {
      const Crossing<S> crossing = find_crossing<F>(et, n, total, mu * total, spare[0], spare[1]);
      const HeadTail g = gaps<F>(es, et, n, r.inverse_student, r.inverse_teacher, crossing);
      const double sum = g.head + g.tail;
      if (sum > 0) head = g.head / sum;
    }
    return weighted_kl<true, true>(head, 1 - head);
  }
};

template <class T> void clear(T* p, int64_t n) { std::memset(static_cast<void*>(p), 0, sizeof(T) * size_t(n)); }

template <class F, class T, class S = ScalarOf<F>> const S* widen_row(const T* z, int64_t n, S* out) {
  for_each_block<F>(
      n, [&](int64_t i, int count, int) KD_LAMBDA { store_row(out + i, load_row<F>(z + i, count, 0.0f), count); },
      []() KD_LAMBDA {});
  return out;
}

// The whole of one row's work for a pair of dtypes. Logits of two different types are first widened into scratch.
template <class F, class Ts, class Tt>
void run_row(const RowsCall& call, int64_t row, double gradient_scale, void* scratch) {
  using S = ScalarOf<F>;
  constexpr bool kMixed = !std::is_same<Ts, Tt>::value;
  using T = std::conditional_t<kMixed, S, Ts>;
  const double weight = call.weight ? double(static_cast<const S*>(call.weight)[row]) : 1.0;
  const double upstream = call.upstream ? double(static_cast<const S*>(call.upstream)[row]) : 1.0;
  Ts* grad = call.grad.data ? static_cast<Ts*>(call.grad.data) + row * call.grad.row_stride : nullptr;
  const auto set = [row](void* to, double x) {
    if (to) static_cast<S*>(to)[row] = static_cast<S>(x);
  };
  if (weight == 0) {  // not read: it may hold anything
    set(call.value, 0);
    set(call.student_entropy, 0);
    set(call.teacher_entropy, 0);
    if (grad) clear(grad, call.width);
    return;
  }

  const int64_t stride = scratch_row(call.columns);
  S* buffer = static_cast<S*>(scratch);
  const Ts* zs = static_cast<const Ts*>(call.student.data) + row * call.student.row_stride;
  const Tt* zt = static_cast<const Tt*>(call.teacher.data) + row * call.teacher.row_stride;
  const auto take = [&buffer, stride] {
    S* p = buffer;
    buffer += stride;
    return p;
  };
  RowKernel<F, T, Ts> kernel;
  kernel.n = call.columns;
  kernel.es = take();
  kernel.et = take();
  kernel.spare[0] = kernel.spare[1] = nullptr;
  if constexpr (kMixed) {
    kernel.zs = widen_row<F>(zs, call.columns, take());
    kernel.zt = widen_row<F>(zt, call.columns, take());
  } else {
    kernel.zs = zs;
    kernel.zt = zt;
  }
  if (call.family == Family::kAkl) {
    kernel.spare[0] = take();
    kernel.spare[1] = take();
  }
  kernel.grad = grad;
  kernel.factor = static_cast<S>(weight * call.scale * upstream * gradient_scale * call.inverse_temperature_student);
  kernel.k = tempering<S>(call.inverse_temperature_student, call.inverse_temperature_teacher);

  const double value = kernel.run(call);
  set(call.value, weight * call.scale * (value < 0 ? 0.0 : value));
  set(call.student_entropy, kernel.student_entropy);
  set(call.teacher_entropy, kernel.teacher_entropy);
  if (grad) clear(grad + call.columns, call.width - call.columns);
}

template <class F, class Ts> RowFunction row_function_of(DType teacher) {
  switch (teacher) {
    case DType::kFloat32: return run_row<F, Ts, float>;
    case DType::kBFloat16: return run_row<F, Ts, BFloat16>;
    case DType::kFloat16: return run_row<F, Ts, Half>;
    default: return nullptr;
  }
}

template <class F> RowFunction row_function(DType student, DType teacher) {
  switch (student) {
    case DType::kFloat32: return row_function_of<F, float>(teacher);
    case DType::kBFloat16: return row_function_of<F, BFloat16>(teacher);
    case DType::kFloat16: return row_function_of<F, Half>(teacher);
    default: return nullptr;
  }
}

KD_END
