"""What a teacher's predictions depend on: it decides whether a cache of them is good for a run."""

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kd_kernels.distillation import models, text
from kd_kernels.distillation.settings import TeacherSettings

# How messages call what there is.
NAMES = {
    "text": "the text of --data",
    "holdout": "--holdout",
    "seq_len": "--seq-len",
    "temperature": "--temperature",
    "dtype": "--dtype",
    "tokenizer": "the tokenizer",
    "vocabulary": "the size of the teacher's vocabulary",
    "weights": "the teacher",
}


def of_text(settings: TeacherSettings, documents: Sequence[str]) -> dict[str, Any]:
    """What is known before a model is loaded."""
    return {
        "text": text.digest(documents),
        "holdout": settings.holdout,
        "seq_len": settings.seq_len,
        "temperature": settings.temperature,
        "dtype": settings.dtype,
    }


def of_teacher(teacher: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """What only the teacher tells."""
    return {
        "tokenizer": models.tokenizer_digest(tokenizer),
        "vocabulary": teacher.config.get_text_config().vocab_size,
        "weights": models.fingerprint(teacher),
    }


def differences(then: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What changed, in words; of hashes the first digits."""
    return [
        f"{NAMES[name]} was {_short(then[name])}, is {_short(value)}"
        for name, value in now.items()
        if value != then[name]
    ]


def _short(value: Any) -> str:
    return value[:12] if isinstance(value, str) and len(value) == 64 else str(value)
