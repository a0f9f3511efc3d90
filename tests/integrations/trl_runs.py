"""TRL's trainers on tiny random models, without a network: what a run logs, and the student it leaves."""

import copy
import os
import tempfile
from functools import cache
from pathlib import Path
from typing import NamedTuple

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM, set_seed
from trl import DistillationConfig, DistillationTrainer
from trl.experimental.gkd import GKDConfig, GKDTrainer
from trl.experimental.gold import GOLDConfig, GOLDTrainer

SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
ANSWERS = (
    "the quick brown fox", "jumps over", "the lazy dog and the other dogs too", "a", "quick quick", "foxes are brown",
    "over and over", "the end",
)  # fmt: skip
OTHERS = ("brown bread", "a rover of the lazy sea", "the other end", "dogs jump and foxes jump", "quicker")
TRAINERS = {"gkd": GKDTrainer, "gold": GOLDTrainer, "distillation": DistillationTrainer}
CONFIGS = {"gkd": GKDConfig, "gold": GOLDConfig, "distillation": DistillationConfig}

_folder = tempfile.TemporaryDirectory()  # of the process


class Run(NamedTuple):
    logs: list[dict[str, float]]
    weights: dict[str, torch.Tensor]


@cache
def model_folder(
    name: str, tokens: int, width: int, texts: tuple[str, ...] = ANSWERS, vocabulary: int | None = None
) -> str:
    """A model with a byte-level tokenizer of this many tokens, made for these texts; its vocabulary may be larger."""
    folder = Path(_folder.name) / f"{name}{vocabulary or ''}"
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=tokens, special_tokens=SPECIALS, initial_alphabet=sorted(alphabet), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    fast.chat_template = TEMPLATE
    fast.save_pretrained(folder)
    settings = Qwen2Config(
        vocab_size=vocabulary or len(fast), hidden_size=width, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, initializer_range=0.3,
    )  # fmt: skip
    torch.manual_seed(width)
    Qwen2ForCausalLM(settings).save_pretrained(folder)
    return str(folder)


@cache
def _load(folder: str) -> Qwen2ForCausalLM:
    return Qwen2ForCausalLM.from_pretrained(folder)


@cache
def tokenizer_of(folder: str) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast.from_pretrained(folder)


def make(
    kind: str,
    *,
    accumulation: int = 1,
    across: bool = False,
    mixin: type | None = None,
    vocabulary: int | None = None,
    length: int = 1,
    dtype: torch.dtype = torch.float32,
    **config,
):
    """A trainer; `across` tokenizers, the teacher has another vocabulary. Answers are `length` times as long."""
    student = model_folder("student", 280, 16, vocabulary=vocabulary)
    names = ("other", 290, 24, OTHERS) if across else ("teacher", 280, 24)
    teacher = model_folder(*names, vocabulary=vocabulary)
    settings = {
        "output_dir": str(Path(_folder.name) / "out"), "use_cpu": True, "bf16": False, "report_to": "none",
        "save_strategy": "no", "logging_steps": 1, "disable_tqdm": True, "max_steps": 2, "optim": "sgd",
        "learning_rate": 0.1, "lr_scheduler_type": "constant",  # Adam would divide noise by noise
        "per_device_train_batch_size": 2, "gradient_accumulation_steps": accumulation, "gradient_checkpointing": False,
    }  # fmt: skip
    texts = [length * text for text in ANSWERS * 2]
    if kind == "distillation":
        data = {"prompt": [[{"role": "user", "content": text}] for text in texts]}
        settings["max_completion_length"] = 6
    else:
        data = {
            "messages": [
                [{"role": "user", "content": f"say {i}"}, {"role": "assistant", "content": text}]
                for i, text in enumerate(texts)
            ]
        }
        settings["max_length"] = 64 * length
        settings |= {"max_new_tokens": 6} if kind == "gkd" else {"max_completion_length": 6}
        settings["lmbda"] = 0.0  # no text of the student's own
    if across:
        settings["teacher_tokenizer_name_or_path"] = teacher
    cls = TRAINERS[kind]
    if mixin is not None:
        cls = type(f"Fused{cls.__name__}", (mixin, cls), {})
    set_seed(0)
    return cls(
        model=copy.deepcopy(_load(student)).to(dtype), teacher_model=copy.deepcopy(_load(teacher)).to(dtype),
        args=CONFIGS[kind](**settings | config), train_dataset=Dataset.from_dict(data),
        processing_class=tokenizer_of(student),
    )  # fmt: skip


# What a trainer logs of its losses; times and the like differ between runs.
LOGGED = ("loss", "entropy", "matched_loss", "unmatched_loss", "on_policy_loss", "off_policy_loss", "grad_norm")


def train(kind: str, **options) -> Run:
    trainer = make(kind, **options)
    trainer.train()
    logs = [{k: v for k, v in log.items() if k in LOGGED} for log in trainer.state.log_history if "loss" in log]
    assert len(logs) == trainer.args.max_steps
    return Run(logs, {name: x.detach().clone() for name, x in trainer.model.named_parameters()})
