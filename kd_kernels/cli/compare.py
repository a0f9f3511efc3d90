"""`kd-kernels compare`: arguments."""

import argparse
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

from kd_kernels.cli import distill
from kd_kernels.distillation.method import METHODS
from kd_kernels.distillation.settings import Settings

DESCRIPTION = """\
Runs kd-kernels distill for several methods, from the same start, and puts what they found into one table.

A NAME is a method or a kind of divergence, with options of its own after a colon: reverse_kl,
f_distill:variant=tvd, gkd:on_policy=1,beta=0.1. All other options are those of kd-kernels distill, for every run.

In --out: a folder for each run, comparison.json, comparison.csv and comparison.png. Ctrl-C stops after the step under
way; the same command with --resume goes on."""

NAMES = ("forward_kl", "reverse_kl", "todi", "f_distill:variant=js", "gkd")
STEPS, OUT = 60, "runs/compare"
OWN = ("names", "out", "command")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = DESCRIPTION
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("names", nargs="*", metavar="NAME", default=NAMES, help=f"({' '.join(NAMES)})")
    distill.add_models(parser.add_argument_group("models and text"))
    training = parser.add_argument_group("training")
    distill.add_training(training, str(STEPS))
    training.add_argument("--backend", metavar="NAME", help="implementation of the losses (auto)")
    distill.add_run(parser.add_argument_group("run"), OUT)
    options = {action.dest for action in parser._actions}
    shared = {name: value for name, value in asdict(Settings()).items() if name in options}
    parser.set_defaults(**shared | {"steps": STEPS, "out": OUT})


def run(args: argparse.Namespace) -> int:
    from kd_kernels.distillation import comparison
    from kd_kernels.distillation.stop import Stopped

    out = Path(args.out)
    given = {name: value for name, value in vars(args).items() if name not in OWN}
    runs = {}
    for name in args.names:
        if name in runs:
            raise ValueError(f"{name} is there twice")
        runs[name] = _line(name, given, comparison.folder_of(out, name))
        _check(name, runs[name])
    try:
        result = comparison.compare(runs, out)
    except Stopped as stopped:
        print(f"{stopped}; the same command with --resume goes on", file=sys.stderr)
        return 128 + stopped.signum
    print(comparison.table(result))
    return 0


def _line(name: str, given: Mapping[str, Any], out: Path) -> list[str]:
    """The command line of a run."""
    method, _, options = name.partition(":")
    which = {"method": method} if method in METHODS else {"method": "divergence", "kind": method}
    parts = (option.partition("=") for option in options.split(",") if option)
    own = {option: value if equals else True for option, equals, value in parts}
    line = ["distill"]
    for option, value in {**given, "out": str(out), **which, **own}.items():
        flag = f"--{option.replace('_', '-')}"
        if value is True:
            line.append(flag)
        elif value is not None and value is not False:
            line.append(f"{flag}={value}")
    return line


def _check(name: str, line: list[str]) -> None:
    """Refuses a run that would refuse itself, before the first begins."""
    parser = _Parser(allow_abbrev=False)
    distill.add_arguments(parser)
    try:
        settings = Settings(**vars(parser.parse_args(line[1:])))
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    if settings.recipe.cross_tokenizer:
        raise ValueError(f"{name}: its student has a tokenizer of its own, and tokens that do not compare")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(message)
