"""The losses in plain torch: readable, on any device, differentiable any number of times. The oracle of the others.

It holds several `[N, V]` tensors and evaluates the textbook formulas, so near convergence it is as inexact as any eager
code in its dtype; in float64 it is the truth the kernels are tested against.
"""

from kd_kernels.backends.reference.rows import divergence, tail_logits, top_k_divergence
from kd_kernels.backends.reference.transport import l1_cost, sinkhorn, sorted_l1

__all__ = ["divergence", "l1_cost", "sinkhorn", "sorted_l1", "tail_logits", "top_k_divergence"]
