// One row of one slice of the vocabulary, for each of the passes over the slices.
//
// Whether a row is near is known when its last slice has been seen. Both KLs are summed before that: in the near form,
// which serves far rows too.
#pragma once

#include "kd/divergences/jsd.h"
#include "kd/divergences/kl.h"
#include "kd/divergences/mixture_kl.h"
#include "kd/divergences/todi.h"
#include "kd/divergences/tvd.h"
#include "row_kernel.h"
#include "row_sweeps.h"
#include "slices.h"

KD_BEGIN

// A slice may hold nothing but -inf, or the lowest number of its dtype, on either side. Entries from here down have no
// mass, and differences of offsets stay finite; kBeyond is lower still.
constexpr float kLowestTop = -1e29f;

template <class F, class U> struct SliceKernel {  // U: gradient as written
  using S = ScalarOf<F>;

  const S* zs;
  const S* zt;
  int64_t n;
  Tempering<S> k;
  S* es;  // scratch: exponentials of the student, of the teacher
  S* et;
  Normal<S> r;

  // Each KL of the slice as a distribution of its own; the slice's gap is right to relative precision once log1p of the
  // residue, sum (q - p), is added.
  template <class Set> void statistics(bool entropies, Set set) {
    const S top_s = max(row_max<F>(zs, n), S(kLowestTop)), top_t = max(row_max<F>(zt, n), S(kLowestTop));
    const ExponentialSums sum = exponentiate(top_s, top_t);
    set(SliceStatistic::kTopStudent, top_s);
    set(SliceStatistic::kTopTeacher, top_t);
    set(SliceStatistic::kSumStudent, sum.student / at(top_s, k.rate_student, r.offset_student));
    set(SliceStatistic::kSumTeacher, sum.teacher / at(top_t, k.rate_teacher, r.offset_teacher));
    for (int i = SliceStatistic::kShiftStudent; i < SliceStatistic::kCount; ++i) set(i, 0);
    if (sum.student > 0) {
      r.inverse_student = static_cast<S>(1 / sum.student);
      r.log_sum_student = std::log(sum.student) / kLnBase<S>;
      if (entropies)
        set(SliceStatistic::kStudentEntropy,
            entropy<F>(zs, n, k.rate_student, r.offset_student, es, r.log_sum_student, r.inverse_student));
    }
    if (sum.teacher > 0) {
      r.inverse_teacher = static_cast<S>(1 / sum.teacher);
      r.log_sum_teacher = std::log(sum.teacher) / kLnBase<S>;
      if (entropies)
        set(SliceStatistic::kTeacherEntropy,
            entropy<F>(zt, n, k.rate_teacher, r.offset_teacher, et, r.log_sum_teacher, r.inverse_teacher));
    }
    if (!(sum.student > 0 && sum.teacher > 0)) return;
    set_gap(top_s, top_t, k, &r);
    set(SliceStatistic::kShiftStudent, r.shift_student);
    set(SliceStatistic::kShiftTeacher, r.shift_teacher);
    set(SliceStatistic::kGap, r.gap);

    BlockSum<F> forward, reverse, residue;
    const EntryReader<F, S> entries(zs, zt, k, r, es, et);
    const Kl<F, true, false> forward_kl{F(S(1)), F(S(0))};
    const Kl<F, false, true> reverse_kl{F(S(0)), F(S(1))};
    for_each_block<F>(
        n,
        [&](int64_t i, int count, int slot) KD_LAMBDA {
          const Pair<F> v = entries.template read<true>(i, count);
          const Term<F> t = forward_kl(v);
          forward.add(slot, t.value);
          residue.add(slot, t.h);
          reverse.add(slot, reverse_kl(v).value);
        },
        [&]() KD_LAMBDA {
          forward.flush();
          reverse.flush();
          residue.flush();
        });
    set(SliceStatistic::kForward, forward.total);
    set(SliceStatistic::kReverse, reverse.total);
    set(SliceStatistic::kResidue, residue.total);
  }

  // Takes up what is known of the whole row. False where its softmax does not exist.
  template <class Get> bool resume(Get state) {
    const S top_s = static_cast<S>(state(SliceState::kTopStudent)),
            top_t = static_cast<S>(state(SliceState::kTopTeacher));
    const double inverse_s = state(SliceState::kInverseStudent), inverse_t = state(SliceState::kInverseTeacher);
    if (inverse_s != inverse_s || inverse_t != inverse_t) return false;
    exponentiate(top_s, top_t);
    r.inverse_student = static_cast<S>(inverse_s / at(top_s, k.rate_student, r.offset_student));
    r.inverse_teacher = static_cast<S>(inverse_t / at(top_t, k.rate_teacher, r.offset_teacher));
    r.shift_student = static_cast<S>(state(SliceState::kShiftStudent));
    r.shift_teacher = static_cast<S>(state(SliceState::kShiftTeacher));
    r.gap = static_cast<S>(state(SliceState::kGap));
    return true;
  }

  template <Emit emit, class Get>
  TermSums terms_of(Family family, double param, Get state, U* grad = nullptr, S factor = 0) {
    const S h_sum = static_cast<S>(state(SliceState::kHSum));
    const auto emit_terms = [&](const auto& divergence) {
      return terms<emit, F>(divergence, zs, zt, n, k, r, es, et, grad, factor, h_sum);
    };
    const F a(static_cast<S>(param)), b(static_cast<S>(1 - param));
    const auto emit_either = [&](const auto& near, const auto& far) {
      return state(SliceState::kFar) != 0 ? emit_terms(far) : emit_terms(near);
    };
    switch (family) {
      case Family::kKl:
        return emit_terms(Kl<F, true, true>{F(static_cast<S>(state(SliceState::kForwardWeight))),
                                            F(static_cast<S>(state(SliceState::kReverseWeight)))});
      case Family::kJsd: return emit_either(Jsd<Near, F>{a, b}, Jsd<Far, F>{a, b});
      case Family::kTeacherMixture: return emit_either(MixtureKl<Near, F, false>{a, b}, MixtureKl<Far, F, false>{a, b});
      case Family::kStudentMixture: return emit_either(MixtureKl<Near, F, true>{a, b}, MixtureKl<Far, F, true>{a, b});
      case Family::kTvd: return emit_terms(Tvd<F>{});
      case Family::kTodi:
        if (param == 1) return emit_either(Todi<F, true>{a}, FarTodi<F, true>{a});
        return emit_either(Todi<F, false>{a}, FarTodi<F, false>{a});
      case Family::kAkl: break;
    }
    return {NAN, NAN};
  }

 private:
  ExponentialSums exponentiate(S top_s, S top_t) {
    r.offset_student = -top_s * k.rate_student;
    r.offset_teacher = -top_t * k.rate_teacher;
    return exponentials<F, false, false, true>(zs, zt, n, k, r.offset_student, r.offset_teacher, es, et);
  }

  // The exponential of the top itself: the offset is not exactly -top rate, and slices differ in their tops.
  static double at(S top, S rate, S offset) { return std::exp(kLnBase<S> * (offset + double(top) * rate)); }
};

template <class F, class Ts, class Tt> void run_slice_row(const SliceCall& call, int64_t row, void* scratch) {
  using S = ScalarOf<F>;
  Ts* grad = call.grad.data ? static_cast<Ts*>(call.grad.data) + row * call.grad.row_stride : nullptr;
  const auto set = [&call, row](double* to, int i, double x) { to[i * call.rows + row] = x; };
  const bool counts = !call.weight || call.weight[row] != 0;
  if (!counts) {  // not read: it may hold anything
    switch (call.pass) {
      case SlicePass::kStatistics:
        for (int i = 0; i < SliceStatistic::kCount; ++i) set(call.statistics, i, 0);
        return;
      case SlicePass::kSums:
        for (int i = 0; i < 2; ++i) set(call.sums, i, 0);
        return;
      case SlicePass::kGradient: clear(grad, call.columns); return;
    }
  }

  const int64_t stride = scratch_row(call.columns);
  S* buffer = static_cast<S*>(scratch);
  SliceKernel<F, Ts> kernel;
  kernel.n = call.columns;
  kernel.es = buffer;
  kernel.et = buffer + stride;
  const Ts* zs = static_cast<const Ts*>(call.student.data) + row * call.student.row_stride;
  const Tt* zt = static_cast<const Tt*>(call.teacher.data) + row * call.teacher.row_stride;
  const auto wide = [&](const auto* z, S* room) -> const S* {
    if constexpr (std::is_same<decltype(z), const S*>::value) {
      return z;
    } else {
      return widen_row<F>(z, call.columns, room);
    }
  };
  kernel.zs = wide(zs, buffer + 2 * stride);
  kernel.zt = wide(zt, buffer + 3 * stride);
  kernel.k = tempering<S>(call.inverse_temperature_student, call.inverse_temperature_teacher);
  if (call.pass == SlicePass::kStatistics) {
    kernel.statistics(call.entropies, [&](int i, double x) { set(call.statistics, i, x); });
    return;
  }

  const auto state = [&call, row](int i) { return call.state[i * call.rows + row]; };
  const bool defined = kernel.resume(state);
  if (call.pass == SlicePass::kSums) {
    TermSums sums{NAN, NAN};
    if (defined) sums = kernel.template terms_of<Emit::kSums>(call.family, call.param, state);
    set(call.sums, 0, sums.value);
    set(call.sums, 1, sums.h);
  } else if (defined) {
    const S factor = static_cast<S>(call.factor[row]);
    kernel.template terms_of<Emit::kGradient>(call.family, call.param, state, grad, factor);
  } else {
    for (int64_t i = 0; i < call.columns; ++i) narrow(static_cast<S>(NAN), grad + i);
  }
}

template <class F, class Ts> SliceFunction slice_function_of(DType teacher) {
  switch (teacher) {
    case DType::kFloat32: return run_slice_row<F, Ts, float>;
    case DType::kBFloat16: return run_slice_row<F, Ts, BFloat16>;
    case DType::kFloat16: return run_slice_row<F, Ts, Half>;
    default: return nullptr;
  }
}

template <class F> SliceFunction slice_function(DType student, DType teacher) {
  switch (student) {
    case DType::kFloat32: return slice_function_of<F, float>(teacher);
    case DType::kBFloat16: return slice_function_of<F, BFloat16>(teacher);
    case DType::kFloat16: return slice_function_of<F, Half>(teacher);
    default: return nullptr;
  }
}

KD_END
