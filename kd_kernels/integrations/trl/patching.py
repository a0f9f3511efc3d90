"""`patch`, `unpatch`, `patched`: which functions of TRL are replaced by which of ours."""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from kd_kernels.integrations.replacement import Replacement, Target, prepare
from kd_kernels.integrations.trl import chunked, jsd, uld

logger = logging.getLogger(__name__)

_GOLD = "trl.experimental.gold.gold_trainer"
# By trainer. TRL looks each of them up when it calls it.
TARGETS = {
    "distillation": [Target("trl.trainer.distillation_trainer", "_chunked_divergence_loss", chunked.build)],
    "gkd": [Target("trl.experimental.gkd.gkd_trainer", "GKDTrainer.generalized_jsd_loss", jsd.build_gkd)],
    "gold": [
        Target(_GOLD, "GOLDTrainer.generalized_jsd_loss", jsd.build_gold),
        Target(
            _GOLD, "ULDLoss._compute_distillation_loss", uld.build,
            ("ULDLoss._get_start_and_size_answers", "ULDLoss._align_by_byte_offsets"),
        ),
    ],
}  # fmt: skip

_lock = threading.RLock()
_patched: dict[str, list[Replacement]] = {}


def patch(*, distillation: bool = True, gkd: bool = True, gold: bool = True) -> None:
    """Replaces the losses of TRL's trainers, of those that exist as well as of those to come, in this process.

    Patching what is patched does nothing. Trainers compute what they computed, with the same logs; GKDTrainer and
    GOLDTrainer still make the logits of both models (`FusedLossMixin` does not).

    Args:
        distillation: `DistillationTrainer`: its chunked divergence, with the entropy that it logs.
        gkd: `GKDTrainer`: its generalised JSD.
        gold: `GOLDTrainer`: its generalised JSD, and its ULD loss, plain and hybrid.

    Raises:
        ImportError: TRL is not installed.
        RuntimeError: a name is missing in the installed TRL, or takes other arguments than it did in 1.15 and 1.16; the
            message has the names and the version, and nothing was patched.
    """
    wanted = {"distillation": distillation, "gkd": gkd, "gold": gold}
    with _lock:
        missing = [trainer for trainer, want in wanted.items() if want and trainer not in _patched]
        # All of them are looked at before the first is touched.
        prepared = iter(prepare("trl", [target for trainer in missing for target in TARGETS[trainer]]))
        for trainer in missing:
            _patched[trainer] = [next(prepared) for _ in TARGETS[trainer]]
            for replacement in _patched[trainer]:
                replacement.apply()
            logger.info("TRL's %s losses are those of kd_kernels now", trainer)


def unpatch() -> None:
    """Puts TRL's own functions back; without a patch it does nothing."""
    _undo(list(_patched))


@contextmanager
def patched(*, distillation: bool = True, gkd: bool = True, gold: bool = True) -> Iterator[None]:
    """While it is open, TRL is patched as by `patch`; what was patched before stays so when it closes."""
    with _lock:
        before = set(_patched)
        patch(distillation=distillation, gkd=gkd, gold=gold)
        own = [trainer for trainer in _patched if trainer not in before]
    try:
        yield
    finally:
        _undo(own)


def _undo(trainers: list[str]) -> None:
    with _lock:
        for trainer in trainers:
            for replacement in _patched.pop(trainer, []):
                replacement.undo()
            logger.info("TRL's %s losses are its own again", trainer)
