"""What rows that arrive in slices of the vocabulary show."""

import math

import torch
from comparisons import close, guarded_memory

from kd_kernels.backends.select import implementation
from kd_kernels.chunks import slices as chunk_slices
from kd_kernels.testing.inputs import far_pair, near_pair
from kd_kernels.testing.truth import Result, eager, truth

INF = math.inf


def sliced(student, teacher, kind, backend, width=110, *, temperature=(1.0, 1.0), weight=None, entropies=None):
    """Losses and gradient; the gradient of the first slice beside it, that of the others in place."""
    rows = chunk_slices.SlicedRows(
        len(student), *kind.kernel, tuple(1 / t for t in temperature), 1.0, weight, implementation(backend),
        entropies is not None, student.dtype, student.device,
    )  # fmt: skip
    slices = list(zip(student.clone().split(width, 1), teacher.split(width, 1), strict=True))
    for s, t in slices:
        rows.statistics(s, t)
    rows.normalise()
    while rows.needs_selection:
        for _, t in slices:
            rows.select(t)
    if rows.needs_sums:
        for s, t in slices:
            rows.sums(s, t)
    losses, of_rows = rows.finish()
    if entropies is not None:
        entropies.append(of_rows)
    memory = torch.full((len(student), width + 3), 7.0)
    first = memory[:, : slices[0][0].shape[1]]
    for i, (s, t) in enumerate(slices):
        rows.gradient(s, t, out=s if i else first)
    assert (memory[:, first.shape[1] :] == 7).all(), "memory after a row was written"
    return Result(losses, torch.cat([first, *(s for s, _ in slices[1:])], 1))


def compare(student, teacher, kind, backend, *, plain=None, expected=None, **options):
    chosen = {"temperature": options.get("temperature", (1.0, 1.0)), "mask": options.get("weight")}
    expected = truth(student, teacher, kind, **chosen) if expected is None else expected
    plain = eager(student, teacher, kind, **chosen) if plain is None else plain
    with guarded_memory():
        actual = sliced(student, teacher, kind, backend, **options)
    close(actual.losses, expected.losses, plain.losses, "losses")
    finite = expected.losses.isfinite()
    size = expected.losses[finite].max().item()
    assert not actual.gradient.isnan().any(), "gradient: NaN"
    close(actual.gradient[finite], expected.gradient[finite], plain.gradient[finite], "gradient", size)


def temperatures_and_weights(kind, backend):
    student, teacher = far_pair(3, 300)
    student[1] = teacher[1] = math.nan
    compare(student, teacher, kind, backend, temperature=(2.0, 0.7), weight=torch.tensor([2.0, 0.0, 0.5]))


def digits(kind, backend):
    """Within slices and between them, whatever the distance."""
    for distance, width in ((1e-4, 110), (1e-3, 20), (0.3, 110)):
        student, teacher = near_pair(2, 300, distance=distance)
        expected, actual = truth(student, teacher, kind), sliced(student, teacher, kind, backend, width)
        for name, x, y in zip(Result._fields, actual, expected, strict=True):
            relative = ((x - y).abs().max() / y.abs().max()).item()
            assert relative <= 1e-4, f"relative error of the {name} {relative:.1e} at distance {distance}"


def masses_apart(kind, backend):
    """A later slice is so high that nothing is left of the first, on one side or both."""
    student, teacher = far_pair(3, 300)
    student[:2, 200:] += 100
    teacher[1:, 200:] += 100
    compare(student, teacher, kind, backend)


def masses_of_nothing(kind, backend):
    student, teacher = far_pair(2, 300)
    student[:, 110:] = teacher[:, 110:] = -INF
    compare(student, teacher, kind, backend, temperature=(1.1, 1.1))


def offsets(kind, backend):
    student, teacher = ((x * 16).round() / 16 for x in far_pair(2, 300))
    for by in ((1e4, 0.0), (-1e4, 1e4)):
        shifted = student + by[0], teacher + by[1]
        compare(*shifted, kind, backend, expected=truth(student, teacher, kind), plain=eager(*shifted, kind))


def columns_apart(kind, backend):
    compare(*(x.t().contiguous().t() for x in far_pair(3, 150)), kind, backend)


def nan_shows(kind, backend):
    student, teacher = far_pair(3, 300)
    student[1, 5] = teacher[2, 250] = math.nan
    result = sliced(student, teacher, kind, backend)
    assert result.losses.isnan().tolist() == [False, True, True], "NaN logits, and losses that hide them"
    assert result.gradient[1:].isnan().all(), "NaN logits, and a gradient that hides them"


def entropies(kind, backend):
    student, teacher = far_pair(2, 300)
    student[:, ::3] = teacher[:, ::3] = -INF
    actual = []
    sliced(student, teacher, kind, backend, temperature=(2.0, 0.5), entropies=actual)
    for entropy, logits in zip(actual[0], (student / 2, teacher / 0.5), strict=True):
        expected = torch.distributions.Categorical(logits=logits.double()).entropy()
        torch.testing.assert_close(entropy.double(), expected, rtol=1e-5, atol=1e-6)


SLICE_SITUATIONS = [
    temperatures_and_weights, digits, masses_apart, masses_of_nothing, offsets, columns_apart, nan_shows, entropies,
]  # fmt: skip
