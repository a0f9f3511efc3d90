"""What Sinkhorn iterations return."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Transport:
    """Entropic transport of each problem. Batch dimensions `[...]` are those of the cost.

    P_ij = exp((f_i + g_j - C_ij) / eps). Rows and columns without mass, or beyond a problem's lengths, have potential
    -inf. float32, or float64 for a float64 cost.

    Attributes:
        value: `[...]`, the value asked for. It carries the gradients.
        f: `[..., n]` potentials of the rows, constants.
        g: `[..., m]` potentials of the columns, constants.
        plan: P `[..., n, m]` where it was asked for. It has gradients with `grad` "unrolled" and "implicit".
        iterations: `[...]` int64, how many were run.
        marginal_error: `[...]`, sum |P 1 - a| / sum a, or of the columns where they come first: the other marginal is
            met exactly.
    """

    value: Tensor
    f: Tensor
    g: Tensor
    plan: Tensor | None
    iterations: Tensor
    marginal_error: Tensor
