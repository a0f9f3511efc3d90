"""Methods: the losses of a paper, put together from those of this library."""

from kd_kernels.methods.akl import akl
from kd_kernels.methods.atkd import atkd
from kd_kernels.methods.bild import bild
from kd_kernels.methods.cross_entropy import seqkd
from kd_kernels.methods.distillm import distillm, distillm2
from kd_kernels.methods.dpkd import dpkd
from kd_kernels.methods.f_distill import engine, f_distill
from kd_kernels.methods.gkd import gkd, on_policy
from kd_kernels.methods.kdrl import kdrl, kl_estimate
from kd_kernels.methods.multilevel_ot import MultilevelOTLoss, multilevel_ot
from kd_kernels.methods.samples import Samples
from kd_kernels.methods.sinkd import sinkd
from kd_kernels.methods.sparse_logit_sampling import draw_entries, sparse_logit_sampling
from kd_kernels.methods.taid import TAIDSchedule, taid
from kd_kernels.methods.todi import todi
from kd_kernels.methods.uld import uld

__all__ = [
    "MultilevelOTLoss", "Samples", "TAIDSchedule", "akl", "atkd", "bild", "distillm", "distillm2", "dpkd",
    "draw_entries", "engine", "f_distill", "gkd", "kdrl", "kl_estimate", "multilevel_ot", "on_policy", "seqkd", "sinkd",
    "sparse_logit_sampling", "taid", "todi", "uld",
]  # fmt: skip
