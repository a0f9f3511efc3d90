"""What a run was asked to do."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

import kd_kernels
from kd_kernels import Divergence
from kd_kernels.distillation.method import METHODS, SAMPLING, Method

PARAMETERS = ("beta", "alpha", "mu")
# Defaults that depend on the models: the built-in pair learns from scratch in minutes, others are trained already.
# Models this small gain little from a second thread and lose much to it where another process wants its core.
BUILT_IN = {"seq_len": 32, "batch_size": 4, "steps": 150, "lr": 1e-2, "threads": 1}
GIVEN = {"seq_len": 512, "batch_size": 8, "steps": 1000, "lr": 5e-5}
# Why a method of whole logits, or one across tokenizers, lacks an option, where the option alone does not tell.
OF_WHOLE_LOGITS = {
    "teacher_cache": ", which compares whole distributions",
    "chunk_tokens": ", which holds logits whole",
    "memory_budget": ", which holds logits whole",
}
ACROSS_TOKENIZERS = {"ce_weight": ", where cross-entropy has weight 1 and --ot-weight is that of the rest"}

Some = TypeVar("Some", bound="TeacherSettings")


@dataclass(frozen=True)
class TeacherSettings:
    """What the commands that run a teacher over a text have in common; `resolve` decides what is None."""

    teacher: str | None = None
    data: str | None = None
    seq_len: int | None = None
    holdout: float = 0.1
    temperature: float = 1.0

    batch_size: int | None = None
    device: str = "auto"
    threads: int | None = None
    dtype: str = "float32"
    logits: bool = False

    out: str | None = None
    overwrite: bool = False
    cache_dir: str | None = None

    def __post_init__(self) -> None:
        for name in ("seq_len", "batch_size", "threads"):
            self._require(name, lambda value: value >= 1, "at least 1")
        self._require("holdout", lambda value: 0 < value < 1, "between 0 and 1")

    def resolve(self: Some) -> Some:
        """These settings with every default decided; `threads` may stay None, which leaves them to PyTorch."""
        names = {field.name for field in dataclasses.fields(self)}
        decided = {n: value for n, value in self.defaults.items() if n in names and getattr(self, n) is None}
        if self.device == "auto":
            decided["device"] = "cuda" if torch.cuda.is_available() else "cpu"
        settings = dataclasses.replace(self, **decided)
        return settings if self.out is not None else dataclasses.replace(settings, out=settings.default_out)

    @property
    def defaults(self) -> dict[str, Any]:
        """What settings are that nobody gave."""
        return BUILT_IN if self.teacher is None else GIVEN

    @property
    def default_out(self) -> str:
        """Where the command writes to."""
        raise NotImplementedError

    def _require(self, name: str, holds: Callable[[float], bool], requirement: str) -> None:
        value = getattr(self, name)
        if value is not None and not holds(value):
            raise ValueError(f"{_flag(name)} must be {requirement}, got {value}")


def _flag(name: str) -> str:
    """An option as it is written on the command line."""
    return f"--{name.replace('_', '-')}"


@dataclass(frozen=True)
class Settings(TeacherSettings):
    """The arguments of `kd-kernels distill`, which explains them."""

    student: str | None = None
    teacher_cache: str | None = None
    tail: str | None = None

    method: str = "divergence"
    temperature: float | None = None
    kind: str | None = None
    variant: str | None = None
    detached: bool = False
    beta: float | None = None
    alpha: float | None = None
    mu: float | None = None
    scale_t2: bool = False
    ce_weight: float | None = None
    ot_weight: float | None = None
    eps: float | None = None
    iterations: int | None = None
    form: str | None = None
    top_k: int | None = None
    gamma: float | None = None
    t_start: float | None = None
    t_end: float | None = None
    draws: int | None = None
    hard_share: float | None = None
    easy_weight: float | None = None
    on_policy: float | None = None
    prompt_len: int | None = None
    sample_temperature: float | None = None
    sample_top_k: int | None = None
    sample_top_p: float | None = None
    backend: str = "auto"
    chunk_tokens: int | None = None
    memory_budget: int | None = None

    steps: int | None = None
    accumulate: int = 1
    lr: float | None = None
    warmup: int = 10
    weight_decay: float = 0.1
    clip: float = 1.0
    seed: int = 0
    bf16: bool = False

    resume: bool = False
    save_every: int = 50
    eval_every: int = 0
    eval_blocks: int = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.method not in METHODS:
            raise ValueError(f"--method must be one of {', '.join(METHODS)}, got {self.method!r}")
        self._check_options()
        if self.variant is not None and self.variant not in self.recipe.variants:
            raise ValueError(f"--variant must be one of {', '.join(self.recipe.variants)}, got {self.variant!r}")
        if self.method == "f_distill" and self.variant is not None:
            for name, variants in {"beta": ("js",), "scale_t2": ("kl", "rkl", "js", "tvd")}.items():
                if getattr(self, name) and self.variant not in variants:
                    listed = ", ".join(variants)
                    raise ValueError(f"{_flag(name)} is an option of --variant {listed}, got --variant {self.variant}")
        for name in (
            "steps", "accumulate", "save_every", "eval_blocks", "chunk_tokens", "memory_budget", "prompt_len",
            "sample_top_k",
        ):  # fmt: skip
            self._require(name, lambda value: value >= 1, "at least 1")
        for name in ("ce_weight", "ot_weight", "warmup", "weight_decay", "seed", "eval_every"):
            self._require(name, lambda value: value >= 0, "at least 0")
        for name in ("lr", "clip", "sample_temperature"):
            self._require(name, lambda value: value > 0, "above 0")
        self._require("ce_weight", lambda value: value <= 1, "at most 1")
        self._check_samples()
        if self.batch_size is not None and self.batch_size % self.accumulate:
            raise ValueError(f"--accumulate {self.accumulate} must divide --batch-size {self.batch_size}")
        if self.accumulate > 1 and self.method == "sinkd" and self.form in (None, "batch"):
            raise ValueError(
                "--accumulate would keep tokens apart that --form batch compares: pass --form sequence, or leave it"
            )
        if self.accumulate > 1 and self.method == "atkd":
            raise ValueError("--accumulate would keep tokens apart that --method atkd ranks by how hard they are")
        if self.backend != "auto" and not self.recipe.backends:
            raise ValueError(f"--backend does not apply to --method {self.method}, which is plain PyTorch")
        if (self.teacher is None) != (self.student is None):
            raise ValueError("--teacher and --student go together: give both, or neither for the built-in pair")
        if self.tail is not None and self.teacher_cache is None:
            raise ValueError("--tail says what a --teacher-cache left out: give both, or neither")
        for name in ("chunk_tokens", "memory_budget"):
            if self.logits and getattr(self, name) is not None:
                raise ValueError(f"{_flag(name)} cuts what --logits holds whole: give one of them")

    def _check_options(self) -> None:
        """Refuses options of other methods: nothing that was asked for is passed over."""
        for name in sorted(frozenset().union(*(method.options for method in METHODS.values()))):
            value = getattr(self, name)
            given = value is not None and value is not False  # 0 is given, and equal to False
            if given and name not in METHODS[self.method].options:
                owners = ", ".join(other for other, method in METHODS.items() if name in method.options)
                reasons = OF_WHOLE_LOGITS if self.recipe.whole_logits else {}
                reasons = reasons | (ACROSS_TOKENIZERS if self.recipe.cross_tokenizer else {})
                raise ValueError(
                    f"{_flag(name)} does not apply to --method {self.method}{reasons.get(name, '')}; "
                    f"it is an option of {owners}"
                )

    def _check_samples(self) -> None:
        """Refuses what the text of models cannot be."""
        self._require("on_policy", lambda value: 0 <= value <= 1, "between 0 and 1")
        self._require("sample_top_p", lambda value: 0 < value <= 1, "above 0 and at most 1")
        if self.sample_top_k is not None and self.sample_top_p is not None:
            raise ValueError("--sample-top-k and --sample-top-p both say which tokens are drawn: give one of them")
        for name in sorted(SAMPLING):
            if getattr(self, name) is not None and not self.samples:
                raise ValueError(f"{_flag(name)} says how the student writes, which it does not: pass --on-policy")
        if self.teacher_cache is not None and self.samples:
            raise ValueError(
                "--teacher-cache knows the teacher on the text, not on what the student writes: pass --on-policy 0"
            )
        if self.prompt_len is not None and self.seq_len is not None and self.prompt_len > self.seq_len:
            raise ValueError(f"--prompt-len {self.prompt_len} leaves nothing of --seq-len {self.seq_len} to write")

    @property
    def samples(self) -> bool:
        """Whether models write tokens of the losses."""
        on_policy = self.recipe.defaults.get("on_policy") if self.on_policy is None else self.on_policy
        return self.recipe.samples or bool(on_policy)

    @property
    def recipe(self) -> Method:
        """What there is to know about the method."""
        return METHODS[self.method]

    @property
    def defaults(self) -> dict[str, Any]:
        decided = super().defaults | self.recipe.defaults
        if not self.samples:
            return {name: value for name, value in decided.items() if name not in SAMPLING}
        length = decided["seq_len"] if self.seq_len is None else self.seq_len
        return decided | {"prompt_len": max(1, length // 4)}

    @property
    def whole_logits(self) -> bool:
        """Whether logits exist whole, which some methods need."""
        return self.logits or self.recipe.whole_logits

    @property
    def divergence(self) -> Divergence:
        """The kind with its parameters.

        Raises:
            ValueError: an unknown kind, a parameter that it does not have or that is out of range.
        """
        if self.kind not in kd_kernels.KINDS:
            raise ValueError(f"--kind must be one of {', '.join(kd_kernels.KINDS)}, got {self.kind!r}")
        params = {name: getattr(self, name) for name in PARAMETERS if getattr(self, name) is not None}
        try:
            return kd_kernels.divergences.resolve(self.kind, params)
        except TypeError as error:
            raise ValueError(f"--kind {error}") from None

    @property
    def default_out(self) -> str:
        return f"runs/distill-{self.title}"

    @property
    def title(self) -> str:
        """What a run is called: its method, or its kind of divergence."""
        return {"divergence": self.kind, "f_distill": f"f_distill-{self.variant}"}.get(self.method, self.method)


@dataclass(frozen=True)
class CacheSettings(TeacherSettings):
    """The arguments of `kd-kernels cache-teacher`, which explains them."""

    top_k: int = 64
    precision: str = "float16"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require("top_k", lambda value: value >= 1, "at least 1")

    @property
    def default_out(self) -> str:
        return "runs/teacher.safetensors"
