"""Models and tokenizers of Hugging Face."""

import hashlib
import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from kd_kernels.distillation import text
from kd_kernels.distillation.batches import derive_seed
from kd_kernels.distillation.method import METHODS
from kd_kernels.distillation.settings import Settings, TeacherSettings
from kd_kernels.language_models import head_parameters


@dataclass(frozen=True)
class Pair:
    """A frozen teacher, a student to train, and the tokenizer of each."""

    teacher: PreTrainedModel
    student: PreTrainedModel
    teacher_tokenizer: PreTrainedTokenizerBase
    student_tokenizer: PreTrainedTokenizerBase


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a model directory or id. A directory never needs the network."""
    return AutoTokenizer.from_pretrained(name, local_files_only=_is_directory(name))


def load_model(name: str, dtype: str, device: str) -> PreTrainedModel:
    """The causal language model of a model directory or id."""
    local = _is_directory(name)
    return AutoModelForCausalLM.from_pretrained(name, dtype=getattr(torch, dtype), local_files_only=local).to(device)


def load_teacher(name: str, settings: TeacherSettings) -> PreTrainedModel:
    return load_model(name, settings.dtype, settings.device).eval().requires_grad_(False)


def load_pair(settings: Settings) -> Pair:
    """The models that the settings name, checked to share their tokens where the method wants it."""
    torch.manual_seed(derive_seed(settings.seed, "student"))  # for weights that the student's files may lack
    pair = Pair(
        load_teacher(settings.teacher, settings),
        load_model(settings.student, "float32", settings.device),
        load_tokenizer(settings.teacher),
        load_tokenizer(settings.student),
    )
    if not settings.recipe.cross_tokenizer:
        _check_shared(pair)
    for role in ("student", "teacher"):
        _check_vocabulary(role, getattr(pair, role), getattr(pair, f"{role}_tokenizer"))
    if not settings.whole_logits:
        check_head(pair.student)
        check_head(pair.teacher)
    return pair


def _check_shared(pair: Pair) -> None:
    """Checks that the tokenizers agree; padding beyond their tokens may differ."""
    ours, theirs = pair.student_tokenizer.get_vocab(), pair.teacher_tokenizer.get_vocab()
    if ours != theirs:
        differ = len(dict(ours.items() ^ theirs.items()))
        across = " or ".join(name for name, method in METHODS.items() if method.cross_tokenizer)
        raise ValueError(
            f"student and teacher must have the same tokenizer; of their {len(ours)} and {len(theirs)} tokens "
            f"{differ} differ: choose models that share one, or --method {across}"
        )


def _check_vocabulary(role: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Checks that a model knows its tokens."""
    needed = max(tokenizer.get_vocab().values()) + 1
    size = model.config.get_text_config().vocab_size
    if size < needed:
        raise ValueError(f"the {role}'s vocabulary must have the {needed} entries of its tokenizer, got {size}")


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """A hash of the tokens and their ids."""
    return hashlib.sha256(json.dumps(sorted(tokenizer.get_vocab().items())).encode()).hexdigest()


def fingerprint(model: PreTrainedModel) -> str:
    """A hash of the names, shapes and dtypes of the weights, and of a thousand entries of each."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {list(tensor.shape)} {tensor.dtype};".encode())
        sampled = tensor.flatten()[:: max(1, tensor.numel() // 1000)].contiguous().cpu()
        digest.update(sampled.view(torch.uint8).numpy())
    return digest.hexdigest()


def check_head(model: PreTrainedModel) -> None:
    """Checks that the LM head can be used without the model's logits."""
    try:
        head_parameters(model)
    except ValueError as error:
        raise ValueError(f"{error}; or pass --logits") from None


def _is_directory(name: str) -> bool:
    """Whether the name is a directory rather than an id such as `Qwen/Qwen3-0.6B`."""
    if Path(name).is_dir():
        return True
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise FileNotFoundError(f"{name} is not a model directory")
    return False


def read_documents(settings: TeacherSettings) -> list[str]:
    """The documents that the settings name, chats as the teacher's template writes them."""
    if settings.data is None:
        return text.builtin()
    tokenizer = load_tokenizer(settings.teacher) if settings.teacher else None
    return text.read(Path(settings.data), partial(render_chat, tokenizer))


def render_chat(tokenizer: PreTrainedTokenizerBase | None, messages: list[dict]) -> str:
    """A conversation as the tokenizer's chat template writes it."""
    if tokenizer is None or tokenizer.chat_template is None:
        raise ValueError("'messages' need a tokenizer with a chat template; the teacher's has none")
    try:
        return tokenizer.apply_chat_template(messages, tokenize=False)
    except Exception as error:  # a template is a program; it may raise anything
        raise ValueError(f"the chat template fails: {error}") from None


def keep_quiet() -> None:
    """Leaves the console to us."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
