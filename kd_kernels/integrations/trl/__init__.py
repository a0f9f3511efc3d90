"""TRL's distillation trainers with the losses of this library.

>>> import kd_kernels.integrations.trl as kd_trl
>>> kd_trl.patch()  # GKDTrainer, GOLDTrainer and DistillationTrainer, as they are used already

`class Trainer(kd_trl.FusedLossMixin, GKDTrainer)` goes further: from hidden states, without logits.
"""

from kd_kernels.integrations.trl.fused import FusedLossMixin
from kd_kernels.integrations.trl.patching import patch, patched, unpatch

__all__ = ["FusedLossMixin", "patch", "patched", "unpatch"]
