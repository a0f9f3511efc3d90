"""Who computes the loss of a case: this library on each backend, PyTorch, and peers where they are installed."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from kd_kernels.backends import select
from kd_kernels.benchmark import PROVIDERS
from kd_kernels.benchmark.case import Case, Loss, Provider
from kd_kernels.benchmark.memory import shortage


def of(
    case: Case,
    names: Sequence[str],
    backends: Sequence[str],
    *,
    ours: Callable[[str], Loss],
    dense: Loss,
    dense_bytes: tuple[int, int],
    peers: Sequence[Provider | None] = (),
    around: Callable[[Loss], Loss] = lambda loss: loss,
) -> list[Provider]:
    """The named providers, in the order of PROVIDERS.

    Args:
        case: what to compute.
        names: of PROVIDERS.
        backends: of this library.
        ours: the loss on a backend.
        dense: the loss in plain PyTorch, which eager code runs as it is and the compiler compiles.
        dense_bytes: what `dense` may need at its peak, eager and compiled.
        peers: None for those that do not know the kind.
        around: what runs before `dense` and is not compiled.
    """
    eager_skip, compiled_skip = (shortage(required, case.device) for required in dense_bytes)
    found = [
        *[_ours(case, backend, ours) for backend in backends],
        Provider("eager", lambda: around(dense), skip=eager_skip),
        Provider("compile", lambda: around(_compiled(dense)), skip=compiled_skip),
        *[peer for peer in peers if peer is not None],
    ]
    return [provider for name in PROVIDERS if name in names for provider in found if _is(provider, name)]


def _is(provider: Provider, name: str) -> bool:
    return provider.ours if name == "kd" else provider.name == name


def _ours(case: Case, backend: str, loss: Callable[[str], Loss]) -> Provider:
    chosen, missing = backend, None
    try:
        chosen = select.choose(backend, torch.device(case.device), (case.dtype, case.dtype), case.groups)
    except (ValueError, RuntimeError) as error:
        missing = str(error)
    return Provider(f"kd-{chosen}", lambda: loss(backend), missing, ours=True)


def _compiled(dense: Loss) -> Loss:
    def loss(*inputs: Tensor) -> Tensor:
        return dense(*inputs)

    # Each case compiles the function above anew; those of earlier cases would add up to the limit of recompilations.
    torch.compiler.reset()
    return torch.compile(loss, fullgraph=True, dynamic=False)
