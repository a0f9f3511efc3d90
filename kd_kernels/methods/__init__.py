"""Methods: the losses of a paper, put together from those of this library."""

from kd_kernels.methods.multilevel_ot import MultilevelOTLoss, multilevel_ot
from kd_kernels.methods.sinkd import sinkd
from kd_kernels.methods.uld import uld

__all__ = ["MultilevelOTLoss", "multilevel_ot", "sinkd", "uld"]
