"""Checks of what users hand over to optimal transport. Nothing below checks again."""

from collections.abc import Sequence
from numbers import Integral

import torch
from torch import Tensor

from kd_kernels.arguments import is_number, name_of, real_dense, same_precision
from kd_kernels.reduction import sum_dtype

GRADS = ("unrolled", "implicit", "envelope", "detached")
VALUES = ("transport", "entropic")
ORDERS = ("rows_first", "columns_first")

# Reciprocals stay normal in float32, and exponents finite for costs up to 1e8.
MIN_EPS, MAX_EPS = 1e-6, 1e6


def cost(cost: Tensor) -> None:
    if not isinstance(cost, Tensor):
        raise TypeError(f"cost must be a tensor, got {type(cost).__name__}")
    real_dense("cost", cost)
    if cost.dim() < 2:
        raise ValueError(f"cost must have shape [..., n, m], got {list(cost.shape)}")


def choice(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


def gradient(grad: str, value: str) -> None:
    choice("value", value, VALUES)
    choice("grad", grad, GRADS)
    if grad == "envelope" and value == "transport":
        raise ValueError(
            "grad='envelope' is the derivative of value='entropic' alone: the plan is no optimum of <P, C>. Use "
            "'unrolled' or 'implicit', or 'detached' for a plan that is meant to be constant"
        )


def count(name: str, value: int, least: int = 1) -> int:
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")
    return int(value)


def tolerance(tol: float | None) -> float:
    """The tolerance, or -1 for none."""
    if tol is None:
        return -1.0
    if not is_number(tol):
        raise TypeError(f"tol must be a number or None, got {type(tol).__name__}")
    if not 0 <= tol < 1:
        raise ValueError(f"tol must be in [0, 1), the share of the mass that may be misplaced, got {tol}")
    return float(tol)


def regularisation(eps: float | Tensor, cost: Tensor) -> Tensor:
    """eps of each problem, (B,) float64 on the device of the cost."""
    batch = cost.shape[:-2]
    if isinstance(eps, Tensor):
        if eps.is_complex() or eps.dtype == torch.bool:
            raise TypeError(f"eps must be real, got {name_of(eps.dtype)}")
        if eps.shape not in ((), batch):
            raise ValueError(f"eps must be a number or have the shape {list(batch)}, got {list(eps.shape)}")
        if eps.dim() and eps.device != cost.device:
            raise ValueError(f"eps must be on the device of cost {cost.device}, got {eps.device}")
        if eps.device.type == "cpu" and not torch.compiler.is_compiling() and eps.numel():
            low, high = eps.min().item(), eps.max().item()
            if not (low >= MIN_EPS and high <= MAX_EPS):
                raise ValueError(f"eps must be between {MIN_EPS:g} and {MAX_EPS:g}, got {low:g} to {high:g}")
        return eps.detach().to(cost.device, torch.float64).expand(batch).reshape(-1)
    if not is_number(eps):
        raise TypeError(f"eps must be a number or a tensor, got {type(eps).__name__}")
    if not MIN_EPS <= eps <= MAX_EPS:
        raise ValueError(f"eps must be between {MIN_EPS:g} and {MAX_EPS:g}, got {eps}")
    return torch.full((batch.numel(),), float(eps), dtype=torch.float64, device=cost.device)


def lengths(lengths: Tensor | Sequence[Tensor] | None, cost: Tensor) -> Tensor | None:
    """Rows and columns of each problem, (B, 2) int64."""
    if lengths is None:
        return None
    batch, sizes = cost.shape[:-2], cost.shape[-2:]
    pair = tuple(lengths) if isinstance(lengths, (tuple, list)) else (lengths, lengths)
    if len(pair) != 2:
        raise ValueError(f"lengths must be a tensor or a pair (of rows, of columns), got {len(pair)} of them")
    columns = []
    for part, x, size in zip(("rows", "columns"), pair, sizes, strict=True):
        if isinstance(x, Integral) and not isinstance(x, bool):
            x = torch.tensor(x, device=cost.device)
        if not isinstance(x, Tensor):
            raise TypeError(f"lengths of {part} must be a tensor of integers, got {type(x).__name__}")
        if x.is_floating_point() or x.is_complex() or x.dtype == torch.bool:
            raise TypeError(f"lengths of {part} must be integers, got {name_of(x.dtype)}")
        if x.shape not in ((), batch):
            raise ValueError(f"lengths of {part} must have the shape {list(batch)}, got {list(x.shape)}")
        if x.dim() and x.device != cost.device:
            raise ValueError(f"lengths must be on the device of cost {cost.device}, got {x.device}")
        if x.device.type == "cpu" and not torch.compiler.is_compiling() and x.numel():
            low, high = int(x.min()), int(x.max())
            if low < 0 or high > size:
                raise ValueError(f"lengths of {part} must be between 0 and {size}, got {low} to {high}")
        columns.append(x.to(cost.device, torch.int64).clamp(0, size).expand(batch).reshape(-1))
    return torch.stack(columns, 1)


def marginal(name: str, x: Tensor | str | None, cost: Tensor, axis: int, lengths: Tensor | None) -> Tensor | None:
    """A marginal (B, n), of rows for axis 0 and columns for 1; None: ones."""
    if x is None:
        return None
    real, size, batch = sum_dtype(cost.dtype), cost.shape[-2 + axis], cost.shape[:-2]
    if isinstance(x, str):
        if x != "uniform":
            raise ValueError(f"{name} must be a tensor, None for ones or 'uniform', got {x!r}")
        if lengths is None:
            return torch.full((batch.numel(), size), 1 / max(size, 1), dtype=real, device=cost.device)
        return (1 / lengths[:, axis, None].clamp(min=1).to(real)).expand(-1, size)
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a tensor, None for ones or 'uniform', got {type(x).__name__}")
    real_dense(name, x)
    same_precision(cost, x, ("cost", name))
    if x.shape not in ((size,), (*batch, size)):
        shapes = " or ".join(str(list(s)) for s in dict.fromkeys([(size,), (*batch, size)]))
        raise ValueError(f"{name} must have shape {shapes}, got {list(x.shape)}")
    if x.device != cost.device:
        raise ValueError(f"{name} must be on the device of cost {cost.device}, got {x.device}")
    if x.device.type == "cpu" and not torch.compiler.is_compiling() and x.numel():
        low, high = x.min().item(), x.max().item()
        if not (low >= 0 and high < float("inf")):
            raise ValueError(f"{name} must be finite and not negative, got {low:g} to {high:g}")
    return x.to(real).expand(*batch, size).reshape(batch.numel(), size)


def start(init: Tensor | None, name: str, cost: Tensor, axis: int) -> Tensor | None:
    """Potentials to begin with, (B, size)."""
    if init is None:
        return None
    shape = (*cost.shape[:-2], cost.shape[-2 + axis])
    if not isinstance(init, Tensor):
        raise TypeError(f"init must hold tensors, got {type(init).__name__}")
    real_dense(f"{name} of init", init)
    if init.shape != shape:
        raise ValueError(f"{name} of init must have shape {list(shape)}, got {list(init.shape)}")
    if init.device != cost.device:
        raise ValueError(f"init must be on the device of cost {cost.device}, got {init.device}")
    return init.detach().to(sum_dtype(cost.dtype)).reshape(cost.shape[:-2].numel(), shape[-1])


def distributions(student: Tensor, teacher: Tensor, trailing: int) -> None:
    """Checks two sides that share their batch but for the last `trailing` dimensions."""
    for name, x in (("student", student), ("teacher", teacher)):
        if not isinstance(x, Tensor):
            raise TypeError(f"{name} must be a tensor of logits, got {type(x).__name__}")
        real_dense(name, x)
        if x.dim() < trailing or x.shape[-1] == 0:
            wanted = "[..., n, V]" if trailing == 2 else "[..., V]"
            raise ValueError(f"{name} must have shape {wanted} with V >= 1, got {list(x.shape)}")
    if student.shape[:-trailing] != teacher.shape[:-trailing]:
        raise ValueError(
            f"student and teacher must have the same batch, got shapes {list(student.shape)} and {list(teacher.shape)}"
        )
    if student.device != teacher.device:
        raise ValueError(f"teacher must be on the student's device {student.device}, got {teacher.device}")
    same_precision(student, teacher)


def row_mask(name: str, mask: Tensor | None, x: Tensor) -> Tensor | None:
    """Which rows of x `[..., V]` count, bool `[...]`."""
    if mask is None:
        return None
    if not isinstance(mask, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(mask).__name__}")
    if mask.is_complex() or mask.is_floating_point():
        raise TypeError(f"{name} must be bool or integer, got {name_of(mask.dtype)}")
    if mask.shape != x.shape[:-1]:
        raise ValueError(f"{name} must have the shape of the rows {list(x.shape[:-1])}, got {list(mask.shape)}")
    if mask.device != x.device:
        raise ValueError(f"{name} must be on the device {x.device}, got {mask.device}")
    return mask != 0
