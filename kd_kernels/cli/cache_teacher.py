"""`kd-kernels cache-teacher`: arguments."""

import argparse
import sys
from dataclasses import asdict, fields

from kd_kernels.cli.distill import add_machine, add_text, default
from kd_kernels.distillation.settings import CacheSettings

DESCRIPTION = """\
Runs a teacher once over the text that `kd-kernels distill` trains on, and keeps its likeliest tokens at each position:
`kd-kernels distill --teacher-cache FILE`, with the same arguments, trains from them.

With --top-k at least as large as the vocabulary the logits themselves are kept, in the teacher's dtype, for every
temperature: a run with --logits then takes the steps that it would take with the teacher beside it.

The file is there when it is whole, and carries a hash that is checked before it is used."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = DESCRIPTION
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add_text(parser.add_argument_group("teacher and text"))
    _add_cache(parser.add_argument_group("cache"))
    _add_run(parser.add_argument_group("run"))
    parser.set_defaults(**asdict(CacheSettings()))


def _add_cache(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--top-k", type=int, metavar="K", help="entries kept at each position (%(default)s)")
    group.add_argument("--temperature", type=float, metavar="T", help="of the softmax (%(default)s)")
    group.add_argument(
        "--precision", choices=("float16", "float32"),
        help="of the log-probabilities; what they sum to is kept in float32 (%(default)s)",
    )  # fmt: skip


def _add_run(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--out", metavar="FILE", help=f"({CacheSettings().default_out})")
    group.add_argument("--overwrite", action="store_true", help="replace the file")
    group.add_argument("--batch-size", type=int, metavar="N", help=f"blocks run at a time ({default('batch_size')})")
    group.add_argument("--logits", action="store_true", help="make the logits of a whole batch at once")
    add_machine(group)
    group.add_argument("--cache-dir", metavar="DIR", help="where built-in teachers are kept (the user's cache folder)")


def run(args: argparse.Namespace) -> int:
    from kd_kernels.distillation.caching import cache_teacher
    from kd_kernels.distillation.stop import Stopped

    settings = CacheSettings(**{field.name: getattr(args, field.name) for field in fields(CacheSettings)})
    try:
        out = cache_teacher(settings)
    except Stopped as stopped:  # in the training of the built-in teacher
        print(f"{stopped}; the same command goes on", file=sys.stderr)
        return 128 + stopped.signum
    print(f"{out}: {out.stat().st_size / 1e6:.1f} MB")
    return 0
