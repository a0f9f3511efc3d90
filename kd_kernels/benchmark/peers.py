"""Losses of Liger, TRL and POT for the cases that they know: None for those that they do not."""

import importlib.util
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from kd_kernels.benchmark.case import Case, Loss, Provider
from kd_kernels.benchmark.eager import COMPILED_PEAK_TENSORS
from kd_kernels.benchmark.memory import shortage

if TYPE_CHECKING:
    from kd_kernels.benchmark.heads import HeadsCase
    from kd_kernels.benchmark.transport import SinkhornCase

# beta of the generalised JSD, whose ends both libraries define as the two KLs.
_BETA: dict[str, Callable[[Case], float]] = {
    "forward_kl": lambda case: 0.0,
    "reverse_kl": lambda case: 1.0,
    "jsd": lambda case: case.divergence.beta,
}


def liger_of_logits(case: Case) -> Provider | None:
    """Liger's kernels start from log-probabilities, or for TVD from probabilities: PyTorch computes these first."""
    if case.kind not in ("forward_kl", "reverse_kl", "jsd", "tvd"):
        return None
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


def trl_of_logits(case: Case) -> Provider | None:
    """The loss of TRL's GKD trainer."""
    if case.kind not in _BETA:
        return None

    def build() -> Loss:
        from trl.experimental.gkd import GKDTrainer

        beta = _BETA[case.kind](case)
        # Under accelerate, where the trainer runs, a model's logits reach the loss in fp32.
        return lambda student, teacher: GKDTrainer.generalized_jsd_loss(student.float(), teacher.float(), beta=beta)

    return Provider("trl", build, _not_installed("trl"))


def liger_of_heads(case: "HeadsCase", around: Callable[[Loss], Loss]) -> Provider | None:
    """Liger's chunked loss: PyTorch, compiled, over chunks of 1,024 rows or somewhat more."""
    if case.kind not in _BETA:
        return None
    chunk = -(-case.counted // max(1, case.counted // 1024))
    required = COMPILED_PEAK_TENSORS * 4 * chunk * case.vocab

    def build() -> Loss:
        from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

        chunked = LigerFusedLinearJSDLoss(weight_hard_loss=0.0, weight_soft_loss=1.0, beta=_BETA[case.kind](case))
        torch.compiler.reset()

        def loss(hidden: Tensor, weight: Tensor, teacher_hidden: Tensor, teacher_weight: Tensor) -> Tensor:
            labels = torch.zeros(len(hidden), dtype=torch.long, device=hidden.device)  # of the loss without weight
            return chunked(hidden, weight, teacher_hidden, teacher_weight, labels)

        return around(loss)

    return Provider("liger", build, _not_installed("liger_kernel"), skip=shortage(required, case.device))


def trl_of_heads(case: "HeadsCase", around: Callable[[Loss], Loss]) -> Provider | None:
    """The chunked divergence of TRL's distillation trainer: tiles of 4,096 rows and 32,768 columns in float32."""
    if case.kind not in _BETA:
        return None
    required = _TRL_PEAK_TILES * 4 * min(case.counted, 4096) * min(case.vocab, 32_768)

    def build() -> Loss:
        from trl.trainer.distillation_trainer import ChunkedDivergenceFunction

        beta = _BETA[case.kind](case)

        def loss(hidden: Tensor, weight: Tensor, teacher_hidden: Tensor, teacher_weight: Tensor) -> Tensor:
            losses, _ = ChunkedDivergenceFunction.apply(
                hidden, weight, None, teacher_hidden, teacher_weight, None, beta
            )
            return losses.mean()

        return around(loss)

    return Provider("trl", build, _not_installed("trl"), skip=shortage(required, case.device))


_TRL_PEAK_TILES = 13  # as measured: two of logits, and what PyTorch makes of them where there is no Triton


def pot_of_costs(case: "SinkhornCase") -> Provider:
    """POT's batch solver in the log domain, with a tolerance that no error falls below."""

    def build() -> Loss:
        from ot.batch import solve_batch

        # Of its other modes "envelope", the default, and "last_step" do not give the gradient of <P, C>.
        grad = "autodiff" if case.backward else "detach"
        options = {"reg": case.eps, "method": "log_sinkhorn", "max_iter": case.iterations, "tol": 0.0, "grad": grad}
        return lambda cost: solve_batch(cost.float(), **options).value_linear.mean()

    return Provider("pot", build, _not_installed("ot"), skip=shortage(case.dense_bytes, case.device))


def _not_installed(package: str) -> str | None:
    return "not installed" if importlib.util.find_spec(package) is None else None
