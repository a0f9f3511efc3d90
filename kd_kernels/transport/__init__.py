"""Losses of optimal transport: cost, iterations, value."""

from kd_kernels.transport.l1_cost import l1_cost
from kd_kernels.transport.result import Transport
from kd_kernels.transport.sinkhorn import sinkhorn, sinkhorn_divergence
from kd_kernels.transport.sorted_l1 import sorted_l1

__all__ = ["Transport", "l1_cost", "sinkhorn", "sinkhorn_divergence", "sorted_l1"]
