"""Bugs for the native core; files are relative to csrc."""

from bugs import Bug

import kd_kernels as kd

BUGS = [
    Bug("cpu/driver.cpp", "weight_of<Real>(call, i) != 0", "weight_of<Real>(call, i)", kd.ForwardKL(),
        "the mean over the sum of weights, not the rows that count"),
    Bug("cpu/row_sweeps.h", "kBeyond = -1e30f", "kBeyond = 0.0f", kd.ForwardKL(),
        "lanes beyond the row's end count as logits of 0"),
    Bug("cpu/row_sweeps.h", "if (count == Traits<F>::kLanes) {", "if (count > 0) {", kd.ForwardKL(),
        "whole registers written past the end of a row"),
    Bug("cpu/row_sweeps.h", "reduce_add(lanes[0] + lanes[1])", "reduce_add(lanes[0])", kd.ForwardKL(),
        "every other register left out of the sums"),
    Bug("cpu/row_sweeps.h", "!(safe(sum.student) && safe(sum.teacher)", "!(safe(sum.student)", kd.TVD(),
        "an overflow of the teacher's sum passes"),
    Bug("cpu/row_sweeps.h", "(near ? apart : 0.0)", "apart", kd.ToDi(), "an offset of the logits counted twice"),
    Bug("cpu/row_sweeps.h", "minus_sum(-h_sum * inverse_student)", "minus_sum(-h_sum)", kd.JSD(),
        "sum h times an exponential that is not normalised"),
    Bug("cpu/row_kernel.h", "gradient_scale * call.inverse_temperature_student)", "gradient_scale)", kd.ForwardKL(),
        "a gradient without 1 / T"),
    Bug("cpu/row_kernel.h", "if (grad) clear(grad + call.columns, call.width - call.columns);", "", kd.ForwardKL(),
        "entries beyond the vocabulary are not cleared"),
    Bug("cpu/row_kernel.h", "kFarRow = 1.0 / 64", "kFarRow = 1e-6", kd.ReverseKL(),
        "the far form where it has no digits left"),
    Bug("cpu/row_kernel.h", "if (r.defined) return value;", "return value;", kd.ReverseKL(), "NaN logits hidden"),
    Bug("cpu/akl_split.h", "crossing.first ? 1 : crossing.before", "crossing.before", kd.AKL(0.0),
        "a head without the first entry"),
    Bug("cpu/akl_split.h", "equal != 0 && left > 0; equal &= equal - 1, --left", "equal != 0; equal &= equal - 1",
        kd.AKL(), "all ties in the head"),
    Bug("include/kd/elementary.h", "fma(s, rr, fma(s1, r + F(1.0f), r + x))", "fma(s, r + rr, s) - F(1.0f) + x",
        kd.ForwardKL(), "e^-x - 1 + x by subtraction"),
    Bug("include/kd/divergences/kl.h", "s.big * select(s.below, phi, s.psi)", "s.big * select(s.below, s.psi, phi)",
        kd.ForwardKL(), "the terms of the other KL"),
    Bug("include/kd/divergences/jsd.h", "rest * v.q * of_q.value", "v.q * of_q.value", kd.JSD(), "a weight left out"),
    Bug("include/kd/divergences/mixture_kl.h", "(b * y / u - log_m.value)", "(y / u - log_m.value)", kd.JSStudent(),
        "the mixture's weight left out"),
    Bug("include/kd/divergences/todi.h", "select(s.below, e * sigmoid, sigmoid)",
        "select(s.below, sigmoid, e * sigmoid)", kd.ToDi(), "w for 1 - w"),
]  # fmt: skip
