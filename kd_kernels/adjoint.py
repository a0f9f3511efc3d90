"""The adjoint of converged Sinkhorn iterations: one linear system per problem, by conjugate gradients.

At convergence log x = log a - log(K y) and log y = log b - log(K^T x) hold together; differentiated they give

    [diag r, P; P^T, diag c] [lambda; mu] = [s; t],  r = P 1, c = P^T 1,

s and t the row and column sums of dL/dP * P (Eisenberger et al. 2022, "A Unified Framework for Implicit Sinkhorn
Differentiation", for marginals and costs at once). Without lambda it is (I - B^T B) sqrt(c) mu = rhs with
B = r^-1/2 P c^-1/2, symmetric with eigenvalues 1 - sigma^2 in [0, 1]: conjugate gradients need about the square root of
the number of iterations Sinkhorn itself would. sqrt(c) is in its null space, as shifting lambda and mu against each
other changes nothing; every step is projected off it.
"""

import torch
from torch import Tensor

# Relative residual at which a problem is done, and iterations where nobody looks: to read a residual the host would
# have to wait for a GPU.
_RESIDUAL = 1e-13
_UNWATCHED = 128


def sinkhorn_adjoint(plan: Tensor, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """plan (B, n, m), right-hand sides (B, n) and (B, m) -> lambda (B, n), mu (B, m), in float64.

    Rows and columns without mass get 0. Of the solutions, which differ by a constant, the one with sum c mu = 0.
    """
    if plan.shape[1] < plan.shape[2]:  # the smaller system
        mu, lambda_ = sinkhorn_adjoint(plan.transpose(1, 2), columns, rows)
        sums = plan.double().sum(1)
        mass = sums.sum(1, keepdim=True)
        shift = torch.where(mass > 0, (sums * mu).sum(1, keepdim=True) / mass, 0)
        return lambda_ + shift, mu - shift
    plan, rows, columns = plan.double(), rows.double(), columns.double()
    r, c = plan.sum(2), plan.sum(1)
    inverse_r = torch.where(r > 0, 1 / r, 0)
    inverse_root = torch.where(c > 0, c.rsqrt(), 0)
    null = c.sqrt()
    null = null / null.norm(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)

    def project(x: Tensor) -> Tensor:
        return x - null * (null * x).sum(1, keepdim=True)

    def times(x: Tensor) -> Tensor:  # P x
        return torch.bmm(plan, x.unsqueeze(2)).squeeze(2)

    def transposed_times(x: Tensor) -> Tensor:  # P^T x
        return torch.bmm(plan.transpose(1, 2), x.unsqueeze(2)).squeeze(2)

    def operator(x: Tensor) -> Tensor:
        through = transposed_times(inverse_r * times(inverse_root * x))
        return project(torch.where(c > 0, x, 0) - inverse_root * through)

    residual = project(inverse_root * (columns - transposed_times(inverse_r * rows)))
    solution, direction = torch.zeros_like(residual), residual
    square = (residual * residual).sum(1, keepdim=True)
    enough = square * _RESIDUAL**2
    watched = plan.device.type == "cpu"
    for _ in range(4 * plan.shape[2] + 16 if watched else min(_UNWATCHED, 4 * plan.shape[2] + 16)):
        if watched and not bool((square > enough).any()):
            break
        image = operator(direction)
        curvature = (direction * image).sum(1, keepdim=True)
        going = (square > enough) & (curvature > 0)  # the others stay as they are
        step = torch.where(going, square / torch.where(going, curvature, 1), 0)
        solution = solution + step * direction
        residual = project(residual - step * image)
        following = (residual * residual).sum(1, keepdim=True)
        direction = torch.where(going, residual + following / torch.where(going, square, 1) * direction, direction)
        square = torch.where(going, following, 0)
    mu = inverse_root * solution
    return inverse_r * (rows - times(mu)), mu
