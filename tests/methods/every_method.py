"""Each method of this library's that takes logits or heads, as a function of rows."""

import torch
from row_problems import Rows

import kd_kernels as kd
from kd_kernels.methods import Samples


def _samples(rows: Rows) -> Samples:
    return Samples(rows.student, rows.teacher)


def _drawing(rows: Rows) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return kd.methods.sparse_logit_sampling(rows.student, rows.teacher, generator=generator)


METHODS = {
    "f_distill": lambda x: kd.methods.f_distill("js", _samples(x)),
    "engine": lambda x: kd.methods.engine(x.student, x.teacher),
    "seqkd": lambda x: kd.methods.seqkd(x.student, x.labels),
    "todi": lambda x: kd.methods.todi(x.student, x.teacher, x.labels),
    "gkd": lambda x: kd.methods.gkd(x.student, x.teacher),
    "distillm": lambda x: kd.methods.distillm(x.student, x.teacher),
    "distillm2": lambda x: kd.methods.distillm2(_samples(x)),
    "distillm2_detached": lambda x: kd.methods.distillm2(student_samples=_samples(x), detached=True),
    "akl": lambda x: kd.methods.akl(x.student, x.teacher),
    "taid": lambda x: kd.methods.taid(x.student, x.teacher, 0.5),
    "bild": lambda x: kd.methods.bild(x.student, x.teacher),
    "dpkd": lambda x: kd.methods.dpkd(x.student, x.teacher),
    "sparse_logit_sampling": _drawing,
    "kdrl": lambda x: kd.methods.kdrl(x.student, x.teacher, x.labels),
    "atkd": lambda x: kd.methods.atkd(x.student, x.teacher, x.labels),
    "logprobs": lambda x: kd.logprobs(x.student, x.labels).sum(),
}
# Of other shapes, or of logits alone, with tests of their own for all of this.
OTHERS = {"multilevel_ot", "sinkd", "uld"}
