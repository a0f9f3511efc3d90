"""`kd-kernels distill`: arguments."""

import argparse
import sys
from dataclasses import asdict, fields
from typing import Any

from kd_kernels import KINDS
from kd_kernels.backends.select import BACKENDS
from kd_kernels.distillation.method import FORMS, METHODS
from kd_kernels.distillation.settings import BUILT_IN, GIVEN, Settings
from kd_kernels.top_k import TAILS

DESCRIPTION = """\
Distils a teacher into a student: two causal language models of Hugging Face, which share a tokenizer unless the method
compares across tokenizers.

Without arguments it shows the whole way on a small built-in example, offline: English text that every Python has, a
vocabulary of 151,936 entries, and a small teacher that is trained first and kept for the next time.

In --out: config.json, metrics.jsonl (one object a step), checkpoint.safetensors, plot.png, result.json (held-out text
before and after) and student/, which AutoModelForCausalLM loads. Ctrl-C stops after the step under way; the same
command with --resume goes on from there, after SIGKILL from the last checkpoint, and ends with the same student: on a
CPU, with as many threads, bit for bit."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = DESCRIPTION
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    models = parser.add_argument_group("models and text")
    add_models(models)
    _add_cache(models)
    _add_loss(parser.add_argument_group("loss"))
    _add_sampling(parser.add_argument_group("text that models write"))
    _add_parameters(parser.add_argument_group("parameters of single methods"))
    _add_transport(parser.add_argument_group("optimal transport"))
    add_training(parser.add_argument_group("training"), default("steps"))
    add_run(parser.add_argument_group("run"), "runs/distill-KIND, or -METHOD")
    parser.set_defaults(**asdict(Settings()))


def add_models(group: argparse._ArgumentGroup) -> None:
    add_text(group)
    group.add_argument("--student", metavar="DIR|ID", help="as --teacher; trained in float32")


def _add_cache(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--teacher-cache", metavar="FILE",
        help="predictions of the teacher to train from, made by kd-kernels cache-teacher with the same arguments; the "
        "teacher itself is run for evaluations only",
    )  # fmt: skip
    group.add_argument(
        "--tail", choices=TAILS,
        help="what to make of the probability outside the cache: one more entry, nothing as both sides are "
        "renormalised, nothing as the sum is cut off (bucket)",
    )  # fmt: skip


def add_text(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--teacher", metavar="DIR|ID", help="Hugging Face model directory or id (default: built in)")
    group.add_argument(
        "--data", metavar="FILE",
        help='plain text, or *.jsonl of {"text": ...} or {"messages": [...]} (default: the help topics of Python)',
    )  # fmt: skip
    group.add_argument("--seq-len", type=int, metavar="N", help=f"tokens in a block ({default('seq_len')})")
    group.add_argument("--holdout", type=float, metavar="F", help="share of the text held out (%(default)s)")


def add_machine(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--device", metavar="NAME", help="auto, cpu, cuda, cuda:1, ... (%(default)s)")
    group.add_argument("--threads", type=int, metavar="N", help="of the CPU (PyTorch's; 1 for the built-in models)")
    group.add_argument("--dtype", choices=("float32", "bfloat16"), help="of the teacher (%(default)s)")


def _add_loss(group: argparse._ArgumentGroup) -> None:
    listed = "; ".join(f"{name}: {method.summary}" for name, method in METHODS.items())
    group.add_argument("--method", choices=METHODS, metavar="NAME", help=f"{listed} (%(default)s)")
    variants = {name: method.variants for name, method in METHODS.items() if method.variants}
    listed = "; ".join(f"{name}: {', '.join(names)}" for name, names in variants.items())
    group.add_argument("--variant", metavar="NAME", help=f"of the method; {listed} ({by_method('variant')})")
    group.add_argument(
        "--kind", choices=KINDS, metavar="KIND", help=f"divergence: {', '.join(KINDS)} ({by_method('kind')})"
    )
    for name in ("beta", "alpha", "mu"):
        kinds = ", ".join(kind for kind, cls in KINDS.items() if name in {field.name for field in fields(cls)})
        _add(group, name, float, "X", f"parameter of the kinds {kinds}, and of methods")
    group.add_argument(
        "--temperature", type=float, metavar="T",
        help=f"of both softmaxes; in multilevel_ot, of those under the Sinkhorn distance ({by_method('temperature')})",
    )  # fmt: skip
    group.add_argument("--scale-t2", action="store_true", help="multiply the tempered loss by T^2")
    group.add_argument(
        "--ce-weight", type=float, metavar="W",
        help=f"(1 - W) divergence + W cross-entropy on the text ({by_method('ce_weight')})",
    )  # fmt: skip
    group.add_argument("--backend", choices=BACKENDS, help="implementation of the loss (%(default)s)")
    group.add_argument(
        "--logits", action="store_true",
        help="hold the logits of both models whole, instead of going from hidden states and LM heads to the loss",
    )  # fmt: skip
    group.add_argument("--chunk-tokens", type=int, metavar="N", help="rows of logits that exist at a time")
    group.add_argument(
        "--memory-budget", type=int, metavar="MIB", help="memory that the loss may take, gradients included"
    )


def _add_parameters(group: argparse._ArgumentGroup) -> None:
    _add(group, "top_k", int, "K", "vocabulary entries of each side that are compared")
    group.add_argument("--detached", action="store_true", help="hold the student constant in distillm2's reverse half")
    _add(group, "t_start", float, "X", "share of the teacher in the first step")
    _add(group, "t_end", float, "X", "share of the teacher in the last step")
    _add(group, "draws", int, "N", "entries drawn from the teacher for each token")
    _add(group, "hard_share", float, "F", "share of the tokens, the least certain of the teacher, that are hard")
    _add(group, "easy_weight", float, "W", "W loss of easy tokens + (1 - W) loss of hard ones")


def _add_sampling(group: argparse._ArgumentGroup) -> None:
    _add(
        group, "on_policy", float, "F",
        "fraction of the steps that learn from what the student writes, instead of the text",
    )  # fmt: skip
    group.add_argument(
        "--prompt-len", type=int, metavar="N",
        help="tokens of a block that are given; student or teacher write the others (a quarter)",
    )  # fmt: skip
    _add(group, "sample_temperature", float, "T", "of the softmax that tokens are drawn from")
    group.add_argument("--sample-top-k", type=int, metavar="K", help="draw only from the K likeliest tokens")
    group.add_argument(
        "--sample-top-p", type=float, metavar="P", help="draw only from the likeliest that together have probability P"
    )


def _add(group: argparse._ArgumentGroup, name: str, kind: type, metavar: str, meaning: str) -> None:
    """An option whose default depends on the method."""
    flag = f"--{name.replace('_', '-')}"
    group.add_argument(flag, type=kind, metavar=metavar, help=f"{meaning} ({by_method(name)})")


def _add_transport(group: argparse._ArgumentGroup) -> None:
    _add(
        group,
        "ot_weight",
        float,
        "W",
        "loss = the mix of divergence and cross-entropy, or cross-entropy alone, + W transport",
    )
    group.add_argument(
        "--form", choices=FORMS,
        help=f"what is transported: tokens of the whole batch, tokens of each block, or classes of each token "
        f"({by_method('form')})",
    )  # fmt: skip
    _add(group, "eps", float, "X", "strength of the entropy")
    _add(group, "iterations", int, "N", "of Sinkhorn")
    _add(
        group, "gamma", float, "X", "weight of the Sinkhorn distance in the loss, beside --beta of the logarithmic cost"
    )


def add_training(group: argparse._ArgumentGroup, steps: str) -> None:
    group.add_argument("--steps", type=int, metavar="N", help=f"({steps})")
    group.add_argument("--batch-size", type=int, metavar="N", help=f"blocks in a step ({default('batch_size')})")
    group.add_argument(
        "--accumulate", type=int, metavar="N",
        help="parts that a step's batch is computed in: less memory, the same result (%(default)s)",
    )  # fmt: skip
    group.add_argument("--lr", type=float, metavar="X", help=f"peak learning rate ({default('lr')})")
    group.add_argument("--warmup", type=int, metavar="N", help="steps of linear warm-up before a cosine (%(default)s)")
    group.add_argument("--weight-decay", type=float, metavar="X", help="(%(default)s)")
    group.add_argument("--clip", type=float, metavar="X", help="largest norm of the gradient (%(default)s)")
    group.add_argument("--seed", type=int, metavar="N", help="(%(default)s)")
    add_machine(group)
    group.add_argument("--bf16", action="store_true", help="run the student in bfloat16 autocast")


def add_run(group: argparse._ArgumentGroup, out: str) -> None:
    group.add_argument("--out", metavar="DIR", help=f"output folder ({out})")
    existing = group.add_mutually_exclusive_group()
    existing.add_argument(
        "--resume", action="store_true", help="go on with the run in --out; begin it if there is none"
    )
    existing.add_argument("--overwrite", action="store_true", help="remove the run in --out first")
    group.add_argument("--save-every", type=int, metavar="N", help="steps between checkpoints (%(default)s)")
    group.add_argument(
        "--eval-every", type=int, metavar="N", help="steps between evaluations; 0: before and after (%(default)s)"
    )
    group.add_argument("--eval-blocks", type=int, metavar="N", help="held-out blocks evaluated, at most (%(default)s)")
    group.add_argument("--cache-dir", metavar="DIR", help="where built-in teachers are kept (the user's cache folder)")


def by_method(name: str) -> str:
    """The defaults of an option, and which methods have them."""
    methods: dict[Any, list[str]] = {}
    for method, recipe in METHODS.items():
        if name in recipe.options:
            methods.setdefault(recipe.defaults.get(name), []).append(method)
    return "; ".join(f"{', '.join(names)}: {'none' if value is None else value}" for value, names in methods.items())


def default(name: str) -> str:
    return f"{GIVEN[name]:g}; {BUILT_IN[name]:g} for the built-in models"


def run(args: argparse.Namespace) -> int:
    from kd_kernels.distillation import report
    from kd_kernels.distillation.run import distill
    from kd_kernels.distillation.stop import Stopped

    settings = Settings(**{field.name: getattr(args, field.name) for field in fields(Settings)})
    try:
        result = distill(settings)
    except Stopped as stopped:
        print(f"{stopped}; the same command with --resume goes on", file=sys.stderr)
        return 128 + stopped.signum
    print(report.summary(result))
    return 0
