"""What the tests of methods compare with: transport written down as it is defined, one problem at a time."""

import torch

BACKENDS = ["reference", "cpu"]


def softmax(x):
    e = (x - x.max(-1, keepdim=True).values.detach()).exp()
    return e / e.sum(-1, keepdim=True)


def pairwise_l1(x, y):
    return (x[:, None, :] - y[None, :, :]).abs().sum(-1)


def plan(cost, a, b, eps, iterations):
    """Sinkhorn's, rows first, from the kernel itself."""
    kernel = (-cost / eps).exp()
    v = torch.ones_like(b)
    for _ in range(iterations):
        u = a / (kernel @ v)
        v = b / (kernel.T @ u)
    return u[:, None] * kernel * v[None, :]


def transport(cost, a=None, b=None, eps=0.1, iterations=20, detached=False):
    """<P, C>."""
    a = cost.new_ones(cost.shape[0]) if a is None else a
    b = cost.new_ones(cost.shape[1]) if b is None else b
    p = plan(cost.detach() if detached else cost, a, b, eps, iterations)
    return (p * cost).sum()


def gradient(loss, leaf):
    return torch.autograd.grad(loss, leaf, retain_graph=True)[0]


def kl(a, b):
    """KL(a, b) of rows of probabilities."""
    return (a * (a / b).log()).sum(-1)


def tvd(a, b):
    return (a - b).abs().sum(-1) / 2


def cross_entropy(z, labels):
    return -softmax(z)[torch.arange(len(labels)), labels].log()


def entropy(a):
    return -(a * a.log()).sum(-1)


def todi(p, q, beta=1.0):
    r = (p / q).log()
    w = (1 / (1 + (-beta * r).exp())).detach()
    return (w * p * r - (1 - w) * q * r).sum(-1)


def akl(p, q, mu=0.5):
    """Row by row, with the sorting that the definition speaks of."""
    losses = []
    for p_row, q_row in zip(p, q, strict=True):
        order = sorted(range(len(p_row)), key=lambda v, p_row=p_row: -p_row[v].item())
        mass, head = 0.0, []
        for i, v in enumerate(order):
            mass += p_row[v].item()
            if i == 0 or mass <= mu:
                head.append(v)
        gap = (p_row - q_row).abs().detach()
        g_head, g = gap[head].sum(), gap.sum()
        losses.append(g_head / g * kl(p_row, q_row) + (1 - g_head / g) * kl(q_row, p_row))
    return torch.stack(losses)
