"""`kd-kernels bench`: speed and memory of the losses beside PyTorch and peers."""

import importlib
import re
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from kd_kernels.backends.select import BACKENDS
from kd_kernels.benchmark import PROVIDERS, TARGETS

if TYPE_CHECKING:
    from kd_kernels.benchmark.case import Case

_VOCABULARIES = {"qwen": 151_936, "llama3": 128_256, "gemma": 262_144}
_SIZES = ("rows", "vocab", "hidden", "batch", "iterations")
_DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}


def add_arguments(parser: ArgumentParser) -> None:
    what = parser.add_argument_group("what to measure")
    what.add_argument(
        "target", nargs="?", choices=TARGETS, default="rows",
        help="rows: logits x logits (default); heads: hidden states and LM heads, both sides; transport: SinKD, "
        "Sinkhorn iterations, sorted distributions",
    )  # fmt: skip
    what.add_argument(
        "--kind", type=lambda text: text.split(","), action="extend", help="a,b,... or all (default) of the target"
    )
    what.add_argument("--rows", type=_positive(int), help="default 64; heads: 1024; transport: several sizes")
    size = what.add_mutually_exclusive_group()
    size.add_argument("--vocab", type=_positive(int))
    size.add_argument("--preset", choices=_VOCABULARIES, help="vocabulary of a family of models, default qwen")
    size.add_argument("--tiny", action="store_true", help="4 rows, vocabulary 128: the overhead of a call")
    what.add_argument(
        "--sweep",
        type=_sweep,
        action="append",
        metavar="SIZE=A,B,...",
        help=f"one of {', '.join(_SIZES)}; may be repeated: each varies alone",
    )
    what.add_argument(
        "--dtype", type=_names(_DTYPES), action="extend", help="bf16, fp16, fp32; default bf16, transport: fp32"
    )
    what.add_argument("--device", type=_device, help="cpu or cuda[:n]; default cuda where there is one")
    what.add_argument("--direction", choices=["forward", "forward+backward", "both"], default="forward+backward")
    what.add_argument("--logit-scale", type=_positive(float), default=3.0, help="standard deviation of the logits")
    what.add_argument("--seed", type=int, default=0)

    rows = parser.add_argument_group("of the target rows")
    rows.add_argument(
        "--near", action="store_true", default=None, help="a student that has almost converged to its teacher"
    )

    heads = parser.add_argument_group("of the target heads")
    heads.add_argument("--hidden", type=_positive(int), help="width of the student's hidden states, default 128")
    heads.add_argument("--teacher-hidden", type=_positive(int), help="of the teacher's, default as the student's")
    heads.add_argument("--masked", type=_share, help="share of the rows that does not count, default 0")
    heads.add_argument("--frozen-head", action="store_true", default=None, help="no gradient of the LM head's weight")
    heads.add_argument("--chunk-tokens", type=_positive(int), help="of this library; default what it chooses")
    heads.add_argument("--memory-budget", type=_bytes, help="of this library, such as 600MB")

    transport = parser.add_argument_group("of the target transport")
    transport.add_argument("--batch", type=_positive(int), help="problems at a time, sinkhorn; default several sizes")
    transport.add_argument("--iterations", type=_positive(int), help="of sinkd and sinkhorn, default 20")
    transport.add_argument("--eps", type=_positive(float), help="strength of the entropy, default 0.1")

    how = parser.add_argument_group("against what and how")
    how.add_argument("--backend", type=_names(BACKENDS), action="extend", help="of this library, default auto")
    how.add_argument(
        "--providers", type=_names(PROVIDERS), action="extend", help=f"of {','.join(PROVIDERS)}, default all"
    )
    how.add_argument("--seconds", type=_positive(float), default=3.0, help="of timing per case, default 3")
    how.add_argument("--threads", type=_positive(int), help="default: torch's")

    out = parser.add_argument_group("output beside the table")
    for flag, text in (("json", "everything"), ("csv", "Liger's columns"), ("plot", "chart, .png or .svg")):
        out.add_argument(f"--{flag}", type=_output_file, metavar="FILE", help=text)


def run(args: Namespace) -> int:
    """Measures and reports; 1 where a result was wrong or this library gave none."""
    import torch

    from kd_kernels.benchmark import ceilings, machine, report
    from kd_kernels.benchmark.measure import measure

    if args.plot:
        from kd_kernels.benchmark import (
            plot,
            sweep_plot,
        )  # if matplotlib is missing, better before the measuring than after

    target = importlib.import_module(TARGETS[args.target])
    complete(args)
    if args.threads:
        torch.set_num_threads(args.threads)
    described = machine.describe(args.device)
    print(report.machine_line(described))
    reached = ceilings.measure(args.device) if args.device.startswith("cuda") else {}
    if reached:
        print(ceilings.line(reached))
    measurements = []
    for title, cases in groupby(_cases(args, target), report.title):
        group = list(cases)
        print(f"\n{title}\n{report.heading(group[0])}")
        for case in group:
            measurements.append(measure(case, case.providers(args.providers, args.backend), args.seconds))
            print("\n".join(report.table(measurements[-1])), flush=True)
    print("", *report.footnotes(measurements), sep="\n")

    if args.json:
        report.write_json(args.json, measurements, described, reached, machine.commit(), vars(args))
    if args.csv:
        report.write_csv(args.csv, measurements, described)
    if args.plot:
        (sweep_plot if args.sweep else plot).save(measurements, args.plot)
    return int(any(m.failed for m in measurements))


def _cases(args: Namespace, target: ModuleType) -> "Sequence[Case]":
    """The cases of the target; for a sweep, at each of its sizes."""
    if not args.sweep:
        return target.cases(args)
    cases = [
        replace(case, axis=name)
        for name, sizes in args.sweep
        for size in sizes
        for case in target.cases(Namespace(**vars(args) | {name: size}))
    ]
    for case in cases:
        if case.axis not in case.sizes:
            raise ValueError(f"--sweep must be of {', '.join(case.sizes)} for {case.kind}, got {case.axis}")
    return cases


def complete(args: Namespace) -> None:
    """Fills in the defaults that depend on other arguments or on the machine.

    Raises:
        ValueError: options that do not go together, or a device that is not there.
    """
    import torch

    target = importlib.import_module(TARGETS[args.target])
    for other in TARGETS.keys() - {args.target}:
        for option in importlib.import_module(TARGETS[other]).OPTIONS:
            if getattr(args, option) is not None or option in dict(args.sweep or ()):
                raise ValueError(f"--{option.replace('_', '-')} is for the target {other}, got {args.target}")
    args.kind = list(target.KINDS) if args.kind in (None, ["all"]) else args.kind
    for kind in args.kind:
        if kind not in target.KINDS:
            raise ValueError(f"--kind must be of {', '.join(target.KINDS)} for {args.target}, got {kind!r}")
    args.rows = args.rows or (4 if args.tiny else target.ROWS)
    args.vocab = args.vocab or (128 if args.tiny else _VOCABULARIES[args.preset or "qwen"])
    args.dtype = [_DTYPES[name] for name in args.dtype or [target.DTYPE]]
    args.device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if args.device != "cpu" and not torch.cuda.is_available():
        raise ValueError(f"--device {args.device}: this PyTorch finds no GPU")
    args.backend = args.backend or ["auto"]
    args.providers = args.providers or list(PROVIDERS)


def _names(known: Collection[str]) -> Callable[[str], list[str]]:
    """Parser of `a,b,...` or `all`."""

    def names(text: str) -> list[str]:
        chosen = list(known) if text == "all" else text.split(",")
        for name in chosen:
            if name not in known:
                raise ArgumentTypeError(f"must be of {', '.join(known)}, got {name!r}")
        return chosen

    return names


def _device(text: str) -> str:
    if text.partition(":")[0] not in ("cpu", "cuda"):  # those with a clock in timing.py
        raise ArgumentTypeError(f"must be cpu or cuda, got {text!r}")
    return text


def _positive(number: type[int] | type[float]) -> Callable[[str], int | float]:
    def positive(text: str) -> int | float:
        value = number(text)
        if not 0 < value < float("inf"):
            raise ArgumentTypeError(f"must be positive, got {text}")
        return value

    return positive


def _share(text: str) -> float:
    share = float(text)
    if not 0 <= share < 1:
        raise ArgumentTypeError(f"must be at least 0 and below 1, got {text}")
    return share


def _bytes(text: str) -> int:
    parts = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kMG]?)(i?)B?", text)
    if parts is None or not float(parts[1]):
        raise ArgumentTypeError(f"must be a size in bytes such as 600MB or 2GiB, got {text!r}")
    return round(float(parts[1]) * (1024 if parts[3] else 1000) ** " kMG".index(parts[2] or " "))


def _sweep(text: str) -> tuple[str, list[int]]:
    name, _, sizes = text.partition("=")
    if name not in _SIZES:
        raise ArgumentTypeError(f"must be SIZE=A,B,... with a size of {', '.join(_SIZES)}, got {text!r}")
    return name, [_positive(int)(size) for size in sizes.split(",")]


def _output_file(text: str) -> Path:
    path = Path(text)
    if not path.absolute().parent.is_dir():  # found out before the measuring rather than after
        raise ArgumentTypeError(f"{path.absolute().parent} is not a directory")
    return path
