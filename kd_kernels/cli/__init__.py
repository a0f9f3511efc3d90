"""The command `kd-kernels`.

A subcommand is a module with `add_arguments(parser)` and `run(args) -> exit status`. Only the chosen one is imported.
"""

import argparse
import importlib
import sys
from collections.abc import Sequence
from typing import NamedTuple

import kd_kernels


class Command(NamedTuple):
    """A subcommand: its module, its line of help, and the extra that brings what it imports."""

    module: str
    help: str
    extra: str


COMMANDS = {
    "distill": Command("kd_kernels.cli.distill", "distil one causal language model into another on text", "hf"),
    "compare": Command("kd_kernels.cli.compare", "distil by several methods and put the results side by side", "hf"),
    "cache-teacher": Command(
        "kd_kernels.cli.cache_teacher", "keep a teacher's predictions in a file for distill", "hf"
    ),
    "bench": Command("kd_kernels.cli.bench", "measure the losses beside PyTorch and other libraries", "bench"),
    "info": Command("kd_kernels.cli.info", "show versions, backends and what each supports", "triton"),
    "selftest": Command("kd_kernels.cli.selftest", "check every kind on every backend against float64", "triton"),
}

USAGE_ERROR, INTERRUPTED = 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line (default: the process's own) and returns its exit status."""
    argv = sys.argv[1:] if argv is None else list(argv)
    parser = argparse.ArgumentParser(prog="kd-kernels", description=kd_kernels.__doc__.splitlines()[0])
    parser.add_argument("--version", action="version", version=f"kd-kernels {kd_kernels.__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, command in COMMANDS.items():
        subparser = subparsers.add_parser(name, help=command.help, description=command.help)
        if name in argv[:1]:
            importlib.import_module(command.module).add_arguments(subparser)
    args = parser.parse_args(argv)
    command = COMMANDS[args.command]
    try:
        return importlib.import_module(command.module).run(args)
    except KeyboardInterrupt:
        return _fail("interrupted", INTERRUPTED)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("kd_kernels"):
            raise
        return _fail(f"{error.name} is not installed: pip install 'kd-kernels[{command.extra}]'", USAGE_ERROR)
    except (ValueError, OSError) as error:
        return _fail(str(error), USAGE_ERROR)


def _fail(message: str, status: int) -> int:
    print(f"kd-kernels: {' '.join(message.split())}", file=sys.stderr)
    return status
