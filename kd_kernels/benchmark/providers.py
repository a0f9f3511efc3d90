"""Who computes the loss of a case: this library on each backend, PyTorch, and peers where they are installed."""

import importlib.util
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from kd_kernels.backends import select
from kd_kernels.benchmark import PROVIDERS, eager
from kd_kernels.benchmark.case import Loss, Provider
from kd_kernels.losses import divergence

if TYPE_CHECKING:
    from kd_kernels.benchmark.rows import RowsCase


def of_rows(case: "RowsCase", names: Sequence[str], backends: Sequence[str]) -> list[Provider]:
    """Providers of logits x logits, in the order of PROVIDERS; peers only for the kinds they know."""
    known: dict[str, list[Provider]] = {
        "kd": [_ours(case, backend) for backend in backends],
        "eager": [Provider("eager", lambda: partial(eager.loss, case.divergence))],
        "compile": [Provider("compile", lambda: _compiled(case))],
        "liger": [_liger(case)] if case.kind in ("forward_kl", "reverse_kl", "jsd", "tvd") else [],
        "trl": [_trl(case)] if case.kind in _TRL_BETA else [],
    }
    return [provider for name in PROVIDERS if name in names for provider in known[name]]


def _ours(case: "RowsCase", backend: str) -> Provider:
    try:
        backend = select.choose(backend, torch.device(case.device).type, (case.dtype, case.dtype))
        missing = None
    except (ValueError, RuntimeError) as error:
        missing = str(error)

    def loss(student: Tensor, teacher: Tensor) -> Tensor:
        return divergence(student, teacher, case.divergence, backend=backend)

    return Provider(f"kd-{backend}", lambda: loss, missing, ours=True)


def _compiled(case: "RowsCase") -> Loss:
    def loss(student: Tensor, teacher: Tensor) -> Tensor:
        return eager.loss(case.divergence, student, teacher)

    # Each case compiles the function above anew; those of earlier cases would add up to the limit of recompilations.
    torch.compiler.reset()
    return torch.compile(loss, fullgraph=True, dynamic=False)


def _liger(case: "RowsCase") -> Provider:
    """Liger's kernels start from log-probabilities, or for TVD from probabilities: PyTorch computes these first."""
    missing = _not_installed("liger_kernel")
    if missing is None and torch.device(case.device).type == "cpu":
        missing = "its kernels need a GPU"

    def build() -> Loss:
        from liger_kernel.transformers.jsd import LigerJSD
        from liger_kernel.transformers.kl_div import LigerKLDIVLoss
        from liger_kernel.transformers.tvd import LigerTVDLoss

        normalise, kernel = {
            "forward_kl": (F.log_softmax, LigerKLDIVLoss(reduction="batchmean", log_target=True)),
            "reverse_kl": (F.log_softmax, LigerJSD(beta=1.0)),
            "jsd": (F.log_softmax, LigerJSD(beta=getattr(case.divergence, "beta", 1.0))),
            "tvd": (F.softmax, LigerTVDLoss(reduction="batchmean")),
        }[case.kind]
        return lambda student, teacher: kernel(normalise(student.float(), dim=-1), normalise(teacher.float(), dim=-1))

    return Provider("liger", build, missing)


_TRL_BETA: dict[str, Callable[["RowsCase"], float]] = {
    "forward_kl": lambda case: 0.0,
    "reverse_kl": lambda case: 1.0,
    "jsd": lambda case: case.divergence.beta,
}


def _trl(case: "RowsCase") -> Provider:
    def build() -> Loss:
        from trl.experimental.gkd import GKDTrainer

        beta = _TRL_BETA[case.kind](case)
        # Under accelerate, where the trainer runs, a model's logits reach the loss in fp32.
        return lambda student, teacher: GKDTrainer.generalized_jsd_loss(student.float(), teacher.float(), beta=beta)

    return Provider("trl", build, _not_installed("trl"))


def _not_installed(package: str) -> str | None:
    return "not installed" if importlib.util.find_spec(package) is None else None
