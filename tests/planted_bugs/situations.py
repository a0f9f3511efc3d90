"""Small inputs that show what a backend gets wrong. Each situation raises an AssertionError where one does."""

import importlib
import math
import mmap
import multiprocessing
from pathlib import Path

import torch
from comparisons import close, guarded_memory
from product_situations import PRODUCT_SITUATIONS
from slice_situations import SLICE_SITUATIONS
from tail_situations import TAIL_SITUATIONS
from transport_situations import L1_COST_SITUATIONS, SINKHORN_SITUATIONS, SORTED_L1_SITUATIONS

import kd_kernels as kd
from kd_kernels.testing.inputs import far_pair, near_pair, one_hot_pair
from kd_kernels.testing.truth import eager, evaluate, truth

INF = math.inf


def compare(student, teacher, kind, backend, **options):
    expected, plain = truth(student, teacher, kind, **options), eager(student, teacher, kind, **options)
    actual = evaluate(student, teacher, kind, backend=backend, **options)
    finite = expected.losses.isfinite()
    close(actual.losses, expected.losses, plain.losses, "losses")
    size = expected.losses[finite].max().item()
    assert not actual.gradient.isnan().any(), "gradient: NaN"
    close(actual.gradient[finite], expected.gradient[finite], plain.gradient[finite], "gradient", size)


def memory_after_the_gradient(kind, backend):
    with guarded_memory():
        compare(*far_pair(2, 40), kind, backend)


def temperatures_and_weights(kind, backend):
    """Blocks and a tail, a row that is not read, two temperatures."""
    student, teacher = far_pair(3, 1030)
    student[1] = teacher[1] = math.nan
    weight = torch.tensor([2.0, 0.0, 0.5])
    with guarded_memory():
        compare(student, teacher, kind, backend, temperature=(2.0, 0.7), scale_t2=True, mask=weight)


def half_precisions(kind, backend):
    for dtype in (torch.bfloat16, torch.float16):
        student, teacher = far_pair(2, 90, dtype)
        compare(student, teacher, kind, backend)
        teacher.copy_(1 + torch.arange(90) % 16 / 128)  # they differ in their last bits
        compare(student, teacher, kind, backend)


def ties(kind, backend):
    student, _ = far_pair(2, 1200)
    teacher = torch.arange(2400).reshape(2, 1200).remainder(7) / 2 - 2.0
    compare(student, teacher, kind, backend)


def certainty(kind, backend):
    compare(*one_hot_pair(2, 33, height=20.0), kind, backend)
    compare(*one_hot_pair(2, 33, height=300.0), kind, backend)


def digits(kind, backend):
    """Whatever the distance, four digits of the loss."""
    for distance in (1e-4, 1e-3, 1e-2, 0.3):
        student, teacher = near_pair(2, 300, distance=distance)
        expected = truth(student, teacher, kind)
        actual = evaluate(student, teacher, kind, backend=backend)
        relative = ((actual.losses.double() - expected.losses) / expected.losses).abs().max().item()
        assert relative <= 1e-4, f"relative error of the loss {relative:.1e} at distance {distance}"
        relative = ((actual.gradient.double() - expected.gradient).abs().max() / expected.gradient.abs().max()).item()
        assert relative <= 1e-4, f"relative error of the gradient {relative:.1e} at distance {distance}"


def equal_inputs(kind, backend):
    logits, _ = far_pair(2, 300)
    result = evaluate(logits, logits.clone(), kind, backend=backend, temperature=2.5)
    assert (result.losses == 0).all(), "a loss of equal inputs"
    assert (result.gradient == 0).all(), "a gradient of equal inputs"


def reductions(kind, backend):
    """Mean over rows that count, a normaliser, gradients of rows, of which there are several blocks to scale."""
    student, teacher = far_pair(4, 1030)
    weight = torch.tensor([1.0, 0.0, 3.0, 1.0])
    upstream = torch.tensor([1.0, 1.0, -2.0, 0.5])
    for options in (
        {"reduction": "mean", "mask": weight}, {"reduction": "mean", "normalizer": torch.tensor(7.0)},
        {"reduction": "sum"}, {"reduction": "none", "mask": weight},
    ):  # fmt: skip
        results = []
        for chosen, s, t in ((backend, student, teacher), ("reference", student.double(), teacher.double())):
            leaf = s.clone().requires_grad_()
            loss = kd.divergence(leaf, t, kind, backend=chosen, **options)
            (loss * upstream).sum().backward()
            results.append((loss.detach().double(), leaf.grad.double()))
        (loss, gradient), (true_loss, true_gradient) = results
        torch.testing.assert_close(loss, true_loss, rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(gradient, true_gradient, rtol=1e-4, atol=1e-6)


def nothing_counts(kind, backend):
    student, teacher = far_pair(2, 9)
    loss = kd.divergence(student, teacher, kind, mask=torch.zeros(2), backend=backend)
    assert loss == 0, f"the mean over no rows is {loss.item()}"


def vocabularies(kind, backend):
    """A student with more entries than the teacher, whose rows lie apart: those without a counterpart get 0."""
    student, teacher = far_pair(2, 1100)
    student[:, 1050:] = math.nan
    with guarded_memory():
        result = evaluate(student, teacher[:, :1050], kind, vocab="common", backend=backend)
    assert (result.gradient[:, 1050:] == 0).all(), "a gradient beyond the vocabulary"
    expected = truth(student[:, :1050], teacher[:, :1050], kind)
    torch.testing.assert_close(result.losses.double(), expected.losses, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(result.gradient[:, :1050].double(), expected.gradient, rtol=1e-4, atol=1e-6)
    narrow = teacher[:, :50].contiguous()
    expected = truth(student[:, :50], narrow, kind)
    actual = evaluate(student, narrow, kind, vocab="common", backend=backend)
    torch.testing.assert_close(actual.losses.double(), expected.losses, rtol=1e-5, atol=1e-7)


def columns_apart(kind, backend):
    student, teacher = (x.t().contiguous().t() for x in far_pair(3, 60))
    compare(student, teacher, kind, backend)


def rows_apart(kind, backend):
    """The offset of row 2 passes 2^31, from a stride that does not. The storage is virtual."""
    stride = 2**30
    storage = torch.frombuffer(mmap.mmap(-1, 2 * (4 * stride + 4096)), dtype=torch.bfloat16)
    wide = storage.as_strided((3, 64), (stride, 1), 2 * stride)
    values, teacher = far_pair(3, 64, torch.bfloat16)
    wide.copy_(values)
    actual, expected = (kd.divergence(x, teacher, kind, reduction="none", backend=backend) for x in (wide, values))
    assert torch.equal(actual, expected), "losses depend on the stride of rows"


def nan_shows(kind, backend):
    student, teacher = far_pair(3, 300)
    student[1, 5] = teacher[2, 250] = math.nan
    result = evaluate(student, teacher, kind, backend=backend)
    assert result.losses.isnan().tolist() == [False, True, True], "NaN logits, and losses that hide them"
    assert result.gradient[1:].isnan().all(), "NaN logits, and a gradient that hides them"


def forbidden_on_one_side(kind, backend):
    student, teacher = far_pair(3, 300)
    student[0, 17] = student[1, 41] = teacher[1, 40] = -INF
    compare(student, teacher, kind, backend)


def forbidden_on_one_side_of_a_near_row(kind, backend):
    student, teacher = near_pair(2, 300)
    teacher[:, 7] = teacher.amax(1) - 14
    student[:, 7] = -INF
    result = evaluate(student, teacher, kind, backend=backend)
    assert not result.losses.isnan().any(), "a loss is NaN"
    assert not result.gradient.isnan().any(), "a gradient is NaN"


def forbidden_on_both_sides(kind, backend):
    student, teacher = far_pair(2, 300)
    near = near_pair(2, 300)
    student, teacher = torch.cat([student, near[0]]), torch.cat([teacher, near[1]])
    student[:, ::3] = teacher[:, ::3] = -INF
    compare(student, teacher, kind, backend)


def offsets(kind, backend):
    student, teacher = ((x * 16).round() / 16 for x in far_pair(2, 300))
    expected = truth(student, teacher, kind)
    for by in ((1e4, 0.0), (-1e4, 1e4)):
        shifted = student + by[0], teacher + by[1]
        actual, plain = evaluate(*shifted, kind, backend=backend), eager(*shifted, kind)
        close(actual.losses, expected.losses, plain.losses, "losses")
        close(actual.gradient, expected.gradient, plain.gradient, "gradient")


def late_maximum(kind, backend):
    student, teacher = far_pair(2, 2100)
    student[0, 2060] += 200
    teacher[1, 2070] += 200
    compare(student, teacher, kind, backend)


def entropies(kind, backend):
    student, teacher = far_pair(2, 300)
    student[:, ::3] = teacher[:, ::3] = -INF
    stats, expected = (
        kd.divergence(s, t, kind, reduction="none", return_stats=True, backend=chosen, temperature=2.0)[1]
        for chosen, s, t in ((backend, student, teacher), ("reference", student.double(), teacher.double()))
    )
    torch.testing.assert_close(stats.student_entropy.double(), expected.student_entropy, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(stats.teacher_entropy.double(), expected.teacher_entropy, rtol=1e-5, atol=1e-6)


SITUATIONS = [
    memory_after_the_gradient, rows_apart, temperatures_and_weights, digits, equal_inputs, half_precisions, ties,
    certainty, nothing_counts, vocabularies, columns_apart, nan_shows, forbidden_on_one_side,
    forbidden_on_one_side_of_a_near_row, forbidden_on_both_sides, offsets, entropies, late_maximum, reductions,
]  # fmt: skip


FLOAT32_SITUATIONS = [x for x in SITUATIONS if x not in (rows_apart, half_precisions)]


# Situations for the bugs of a file, by its stem. Rows show what other files hold.
OF_FILES = {
    "slice_kernel": SLICE_SITUATIONS, "slices": SLICE_SITUATIONS, "merge": SLICE_SITUATIONS, "tail": TAIL_SITUATIONS,
    "tail_kernel": TAIL_SITUATIONS, "outer_product": PRODUCT_SITUATIONS, "sinkhorn_frame": SINKHORN_SITUATIONS,
    "sinkhorn_kernel": SINKHORN_SITUATIONS, "sinkhorn_backward": SINKHORN_SITUATIONS,
    "l1_cost_kernel": L1_COST_SITUATIONS, "transport": L1_COST_SITUATIONS, "sorted_l1_kernel": SORTED_L1_SITUATIONS,
}  # fmt: skip


def situations_for(file, of_rows=SITUATIONS):
    return OF_FILES.get(Path(file).stem, of_rows)


def complaint(kind, backend, situations):
    """What the first situation that goes wrong says; None where all is well."""
    for situation in situations:
        try:
            situation(kind, backend)
        except Exception as error:  # a kernel that fails is noticed too
            return f"{situation.__name__}: {error}"
    return None


def complaint_alone(kind, backend, situations, again=()):
    """The same from a process of its own, which has yet to import the backend and may crash.

    It imports the modules `again`, which came with the package.
    """

    def report():
        for name in again:
            importlib.reload(importlib.import_module(name))
        sender.send(complaint(kind, backend, situations))

    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=report)
    process.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError:
        return "the process died"
    finally:
        process.join()
