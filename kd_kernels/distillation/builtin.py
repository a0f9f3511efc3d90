"""The pair of models of a run without `--teacher` and `--student`.

The tokenizer and the teacher are trained on the run's own training text; a cache keeps them for the next run. The
vocabulary is padded to the size that Qwen's has, so that losses work on logits of real width. Where the two sides may
have tokenizers of their own, the student's is trained too, with fewer tokens, in the vocabulary of Llama 2.
"""

import hashlib
import json
import math
import platform
import shutil
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import tokenizers
import torch
import transformers
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer

from kd_kernels.distillation import cache, models, text
from kd_kernels.distillation.batches import Batch, Batches, derive_seed
from kd_kernels.distillation.journal import Journal
from kd_kernels.distillation.loop import Plan, train
from kd_kernels.distillation.models import Pair
from kd_kernels.distillation.objective import Objective
from kd_kernels.distillation.predictions import logits, summed_cross_entropy
from kd_kernels.distillation.settings import Settings, TeacherSettings

VOCABULARY = 151_936  # entries of Qwen's models
TOKENS = 2048  # of them the tokenizer's
OWN_VOCABULARY, OWN_TOKENS = 32_000, 1024  # of a student with a tokenizer of its own
SEQ_LEN, BATCH_SIZE = 128, 8
PLAN = Plan(steps=300, lr=1e-2, warmup=20, weight_decay=0.1, clip=1.0, seed=0, save_every=100)


@dataclass(frozen=True)
class Shape:
    """Size of a model."""

    hidden: int
    layers: int

    def config(self, vocabulary: int) -> Qwen2Config:
        heads = self.hidden // 32
        return Qwen2Config(
            vocab_size=vocabulary, hidden_size=self.hidden, intermediate_size=3 * self.hidden,
            num_hidden_layers=self.layers, num_attention_heads=heads, num_key_value_heads=heads,
            tie_word_embeddings=True, initializer_range=self.hidden**-0.5, bos_token_id=None, eos_token_id=0,
        )  # fmt: skip


TEACHER, STUDENT = Shape(hidden=128, layers=2), Shape(hidden=64, layers=1)


def load_pair(settings: Settings, documents: list[str], work: Path) -> Pair:
    """The teacher of these documents, trained now unless the cache has it, and a student with random weights.

    Args:
        settings: of the run; its method decides whether the student has a tokenizer of its own.
        documents: what the tokenizers and the teacher are trained on.
        work: a folder of the run for the state of that training, so that an interrupted one goes on.
    """
    teacher, tokenizer = load_teacher(settings, documents, work)
    torch.manual_seed(derive_seed(settings.seed, "student"))
    own = settings.recipe.cross_tokenizer
    student = Qwen2ForCausalLM(STUDENT.config(OWN_VOCABULARY if own else VOCABULARY)).to(settings.device)
    return Pair(teacher, student, tokenizer, _train_tokenizer(documents, OWN_TOKENS) if own else tokenizer)


def load_teacher(
    settings: TeacherSettings, documents: list[str], work: Path
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The teacher of these documents and its tokenizer; arguments as for `load_pair`."""
    folder = str(_ensure_teacher(settings, documents, work))
    return models.load_teacher(folder, settings), models.load_tokenizer(folder)


def _ensure_teacher(settings: TeacherSettings, documents: list[str], work: Path) -> Path:
    folder = cache.root(settings.cache_dir) / f"teacher-{_key(documents)}"
    if not cache.intact(folder):
        if folder.exists():
            print(f"{folder} is damaged; training the teacher again", file=sys.stderr)
        tokenizer = _train_tokenizer(documents, TOKENS)
        model = _train_teacher(documents, tokenizer, work, settings.device)

        def save(temporary: Path) -> None:
            model.save_pretrained(temporary)
            tokenizer.save_pretrained(temporary)

        cache.publish(folder, save)
    shutil.rmtree(work, ignore_errors=True)
    return folder


def _train_tokenizer(documents: list[str], tokens: int) -> Qwen2Tokenizer:
    return Qwen2Tokenizer().train_new_from_iterator(documents, tokens, show_progress=False)


def _train_teacher(documents: list[str], tokenizer: Qwen2Tokenizer, work: Path, device: str) -> Qwen2ForCausalLM:
    """Next-token training, with one vocabulary entry that stands for all the padding, repeated afterwards."""
    padding = VOCABULARY - len(tokenizer)
    torch.manual_seed(derive_seed(PLAN.seed, "teacher"))
    model = Qwen2ForCausalLM(TEACHER.config(len(tokenizer) + 1)).to(device)
    batches = Batches(text.blocks(documents, tokenizer, SEQ_LEN), BATCH_SIZE, PLAN.seed, device)
    train(model, PaddedNextToken(padding), batches, PLAN, Journal(work), "teacher")
    model.resize_token_embeddings(VOCABULARY, mean_resizing=False)
    with torch.no_grad():
        embeddings = model.get_input_embeddings().weight
        embeddings[-padding:] = embeddings[-padding].clone()
    return model


@dataclass(frozen=True)
class PaddedNextToken(Objective):
    """Cross-entropy as if the last of V' vocabulary entries were `padding` entries with the same logit.

    Exactly the loss of the padded vocabulary, for the price of the tokenizer's.
    """

    padding: int

    def __call__(self, model: nn.Module, part: Batch, whole: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        prediction = logits(model, part)  # (B, L, V')
        prediction[..., -1] += math.log(self.padding)
        return summed_cross_entropy(prediction, part.labels) / float(whole.count()), {}


def _key(documents: list[str]) -> str:
    """A name for everything that the teacher is made from."""
    recipe = {
        "text": text.digest(documents),
        "model": TEACHER.config(VOCABULARY).to_dict(),
        "tokens": TOKENS,
        "blocks": [SEQ_LEN, BATCH_SIZE],
        "plan": asdict(PLAN),
        "versions": [torch.__version__, transformers.__version__, tokenizers.__version__, platform.machine()],
    }
    return hashlib.sha256(json.dumps(recipe, sort_keys=True, default=str).encode()).hexdigest()[:16]
