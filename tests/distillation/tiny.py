"""Tiny models and texts, and what a run of the command leaves."""

import json
import random
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

WORDS = [f"w{i}" for i in range(280)]
EOS = "<eos>"
CHAT_TEMPLATE = "{% for m in messages %}{{ m.role }} {{ m.content }} {% endfor %}"

# What depends on the machine and the moment, not on the run.
MEASURED = {"seconds", "tokens_per_s", "peak_rss_mb"}


def tokenizer(words: list[str] = WORDS, chat_template: str | None = None) -> PreTrainedTokenizerFast:
    """One token a word."""
    model = Tokenizer(WordLevel({word: i for i, word in enumerate([EOS, *words])}, unk_token=EOS))
    model.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=model, eos_token=EOS, chat_template=chat_template)


def character_tokenizer() -> PreTrainedTokenizerFast:
    """One token a character of the words, and one a space."""
    model = Tokenizer(WordLevel({x: i for i, x in enumerate([EOS, "w", " ", *"0123456789"])}, unk_token=EOS))
    model.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=model, eos_token=EOS)


def save_model(
    folder: Path, seed: int, vocabulary: int = 300, tokens: PreTrainedTokenizerFast | None = None, **config: Any
) -> str:
    torch.manual_seed(seed)
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    settings = LlamaConfig(vocab_size=vocabulary, tie_word_embeddings=True, initializer_range=0.5, **shape | config)
    LlamaForCausalLM(settings).save_pretrained(folder)
    (tokens or tokenizer()).save_pretrained(folder)
    return str(folder)


def sentence(n: int, seed: int) -> str:
    """Words that follow one another by a rule, so that there is something to learn."""
    generator = random.Random(seed)
    at, words = generator.randrange(len(WORDS)), []
    for _ in range(n):
        words.append(WORDS[at])
        at = (3 * at + generator.randrange(3)) % len(WORDS)
    return " ".join(words)


def metrics(folder: Path) -> list[dict[str, Any]]:
    """The records of a run without what was measured."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in MEASURED} for line in lines]


def result(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "result.json").read_text())


def weights(folder: Path) -> bytes:
    return (folder / "student" / "model.safetensors").read_bytes()
