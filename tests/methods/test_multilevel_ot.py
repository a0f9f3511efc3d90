"""MultiLevelOT: the paper's formulas, those of the code published with it, and every step between the two."""

import dataclasses
import math

import by_hand
import pytest
import torch
from by_hand import BACKENDS, gradient
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

import kd_kernels as kd
from kd_kernels import entries
from kd_kernels.entries import Tokens
from kd_kernels.methods import alignment
from kd_kernels.methods.multilevel_ot import FORMS
from kd_kernels.testing.budget import assert_within_budget

each_backend = pytest.mark.parametrize("backend", BACKENDS)
OPS = torch.ops.kd_kernels
PARTS = "total", "had", "sl", "sd"
FLAGS = [name for name, value in FORMS["paper"]._asdict().items() if isinstance(value, bool)]

TEACHER = [[3, 1, 0, -1, 0.5, -2], [0, 2, 1, 0, -1, 0], [1, 0, 0, 2.5, -1, 0.5]]
STUDENT = [[0, 2, 1, -1, 0], [1, 1.5, 0, 0.5, -1], [0.5, 0, 0, 2, 1]]
GOLDEN = {
    "had": (1.50319664, [
        [-0.04608542, -0.34052777, 0.31051593, 0.04202376, 0.0340735],
        [-0.32888402, 0.33509911, -0.12098967, 0.12327607, -0.0085015],
        [0.16986874, -0.04235988, 0.1030306, -0.31299952, 0.08246006]]),
    "sl": (3.19721028, [
        [-0.03007828, -0.22225011, 0.16439057, 0.01328859, 0.07464924],
        [-0.30928672, 0.31992871, -0.11378022, 0.07078533, 0.0323529],
        [0.05421622, -0.07874643, 0.01208444, -0.16409547, 0.17654124]]),
    "sd": (0.94447112, [
        [-0.0616936, -0.15240196, 0.14463311, 0.05344076, 0.01602169],
        [-0.14571658, 0.13906171, -0.08838158, 0.09919319, -0.00415675],
        [0.11983957, -0.06130491, 0.09077252, -0.17359912, 0.02429194]]),
}  # fmt: skip


def logits(*shape, dtype=torch.float64):
    """With columns of their own level, so that the ranking leaves no doubt."""
    levels = torch.linspace(2, -2, shape[-1])[torch.randperm(shape[-1])]
    return (levels + torch.randn(*shape, dtype=torch.float64)).to(dtype)


def ragged(dtype=torch.float64):
    """Three sequences of two tokenizers: logits, and masks of answers anywhere."""
    student, teacher = logits(3, 6, 13, dtype=dtype).requires_grad_(), logits(3, 7, 9, dtype=dtype)
    student_mask = torch.tensor([[0, 0, 1, 1, 1, 0], [1, 1, 0, 1, 1, 1], [0, 0, 0, 0, 1, 1]]).bool()
    teacher_mask = torch.tensor([[1, 1, 0, 0, 0, 0, 0], [0, 1, 1, 0, 1, 1, 1], [0, 1, 1, 1, 1, 0, 0]]).bool()
    return student, teacher, student_mask, teacher_mask


def formula(student, teacher, student_mask, teacher_mask, *, k, form="paper", tau_sl=1.0, tau_sd=2.0, beta=0.1,
            gamma=0.1, eps=0.1, detached=False, **flags):  # fmt: skip
    """Sequence by sequence, from the definition."""
    flags = FORMS[form]._replace(**flags)
    sides = []
    for z, mask in ((student, student_mask), (teacher, teacher_mask)):
        answers = [rows[m] for rows, m in zip(z, mask, strict=True)]
        if flags.std_norm:
            answers = [x / (x.std(-1, keepdim=True) + 1e-4) if len(x) else x for x in answers]
        at_sl, at_sd = ([by_hand.softmax(x / tau) for x in answers] for tau in (tau_sl, tau_sd))
        sums = torch.stack([x.sum(0) for x in at_sl])
        if flags.batch_permutation:
            sums = sums.sum(0).expand_as(sums)
        order = [x.argsort(descending=True, stable=True)[:k] for x in sums]
        at_sl, at_sd = ([p[:, o] for p, o in zip(side, order, strict=True)] for side in (at_sl, at_sd))
        sides.append((at_sl, at_sd))
    (s, s_sd), (t, t_sd) = sides
    if flags.double_softmax:
        s_sd, t_sd = s, t
    longest = max(len(x) for x in s + t)
    had, sl, sd, counted = [], [], [], 0
    for b in range(len(s)):
        n = min(len(s[b]), len(t[b]))
        counted += n > 0 or flags.include_padding
        had.append((t[b][:n] - s[b][:n]).abs().sum() / (max(n, 1) if flags.token_mean else 1))
        ends = (longest, longest, longest) if flags.include_padding else (n, len(s[b]), len(t[b]))

        def cut(x, rows):
            return torch.cat([x, x.new_zeros(max(0, rows - len(x)), k)])[:rows]

        target, model = cut(t[b], ends[0]), cut(s[b], ends[0])
        if flags.swap_roles:
            target, model = model, target
        if flags.double_softmax:
            target, model = by_hand.softmax(target), by_hand.softmax(model)
        there = target > 0
        terms = -target[there] * model[there].log()
        sl.append(terms.sum() / (max(ends[0], 1) if flags.token_mean else 1))
        rows, columns = cut(t_sd[b], ends[2]), cut(s_sd[b], ends[1])
        if flags.double_softmax:
            rows, columns = by_hand.softmax(rows / tau_sd), by_hand.softmax(columns / tau_sd)
        if len(rows) and len(columns):
            cost = by_hand.pairwise_l1(rows, columns)
            sd.append(by_hand.transport(cost, eps=eps, iterations=flags.iterations, detached=detached))
    counted = max(counted, 1)
    had, sl, sd = (sum(x) for x in (had, sl, sd))
    sd = flags.sd_scale * sd / (1 if flags.sd_sum else counted)
    had, sl = had / counted, sl / counted
    return {"total": flags.alpha * (had + beta * sl + gamma * sd), "had": had, "sl": sl, "sd": sd}


def published(student, teacher, student_start, teacher_start, student_size, teacher_size, k):
    """The released training step, but for its cross-entropy, as it goes through dense tensors: -> total.

    Answers are shifted to the left and padded with zeros after the softmax, up to the longest of the batch.
    """

    def probabilities(z, start, size, width):
        z = z / (z.std(-1, keepdim=True) + 1e-4)
        p = z.softmax(-1)
        answers = torch.zeros(p.shape[0], width, p.shape[2], dtype=p.dtype)
        for b in range(p.shape[0]):
            answers[b, : size[b]] = p[b, start[b] : start[b] + size[b]]
        return answers

    width = max(*student_size, *teacher_size)
    s = probabilities(student, student_start, student_size, width)
    t = probabilities(teacher, teacher_start, teacher_size, width)
    s, t = (x[:, :, x.sum(dim=(0, 1)).argsort(descending=True)[:k]] for x in (s, t))
    batch = s.shape[0]
    had = 0
    for b in range(batch):
        n = min(student_size[b], teacher_size[b])
        had = had + (s[b, :n] - t[b, :n]).abs().sum(-1).mean()
    had = had / batch
    sl = -(s.softmax(-1) * t.log_softmax(-1)).sum(-1).mean()
    sd = 0
    for b in range(batch):
        w = torch.cdist((t[b] / 2).softmax(-1), (s[b] / 2).softmax(-1), p=1)
        kernel = (-w / 0.1).exp()
        for _ in range(10):
            kernel = kernel / kernel.sum(1, keepdim=True)
            kernel = kernel / kernel.sum(0, keepdim=True)
        sd = sd + 0.001 * (kernel * w).sum()
    return 1.5 * (had + 0.1 * sl + 0.1 * sd)


def assert_same(ours, theirs, leaf, rtol=1e-11, atol=1e-12):
    for part in PARTS:
        mine = getattr(ours, part)
        torch.testing.assert_close(mine, theirs[part], rtol=rtol, atol=0, msg=lambda m, p=part: f"{p}: {m}")
        torch.testing.assert_close(
            gradient(mine, leaf), gradient(theirs[part], leaf).nan_to_num(), rtol=0, atol=atol,
            msg=lambda m, p=part: f"gradient of {p}: {m}",
        )  # fmt: skip


def parts(loss):
    return [getattr(loss, part).item() for part in PARTS]


class TestPaper:
    @each_backend
    def test_golden(self, backend):
        student = torch.tensor([STUDENT], dtype=torch.float64, requires_grad=True)
        teacher = torch.tensor([TEACHER], dtype=torch.float64)
        loss = kd.methods.multilevel_ot(student, teacher, k=4, backend=backend)
        for part, (value, expected) in GOLDEN.items():
            assert getattr(loss, part).item() == pytest.approx(value, abs=1e-8)
            expected = torch.tensor([expected], dtype=torch.float64)
            torch.testing.assert_close(gradient(getattr(loss, part), student), expected, rtol=0, atol=1e-8)
        assert loss.total.item() == pytest.approx(0.28760472, abs=1e-8)

    @each_backend
    def test_formula(self, backend):
        student, teacher, *masks = ragged()
        options = {
            "k": 5, "beta": 0.7, "gamma": 1.3, "tau_sl": 1.4, "tau_sd": 0.8, "eps": 0.3, "alpha": 0.9, "iterations": 4,
        }  # fmt: skip
        loss = kd.methods.multilevel_ot(student, teacher, *masks, backend=backend, **options)
        assert_same(loss, formula(student, teacher, *masks, **options), student)

    @each_backend
    def test_constant_plan(self, backend):
        student, teacher, *masks = ragged()
        loss = kd.methods.multilevel_ot(student, teacher, *masks, k=5, grad="detached", backend=backend)
        assert_same(loss, formula(student, teacher, *masks, k=5, detached=True), student)

    @each_backend
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
    @pytest.mark.parametrize("form", FORMS)
    def test_accuracy(self, backend, dtype, form):
        student, teacher, *masks = ragged(dtype)
        leaf = student.detach().double().requires_grad_()
        truth = formula(leaf, teacher.double(), *masks, k=6, form=form)
        eager = formula(student.float(), teacher.float(), *masks, k=6, form=form)
        loss = kd.methods.multilevel_ot(student, teacher, *masks, k=6, form=form, backend=backend)
        for part in PARTS:
            mine = getattr(loss, part)
            assert mine.dtype == torch.float32
            assert_within_budget(mine.detach(), truth[part].detach(), eager[part].detach(), part)
            ours = gradient(mine, student)
            assert ours.dtype == dtype
            assert_within_budget(ours, gradient(truth[part], leaf), gradient(eager[part], student), f"d{part}")


class TestReleased:
    @each_backend
    def test_published(self, backend):
        student, teacher = logits(3, 7, 13).requires_grad_(), logits(3, 7, 11)
        starts, sizes = ([2, 0, 4], [1, 3, 3]), ([5, 3, 3], [4, 2, 4])
        masks = [
            torch.stack([(torch.arange(7) >= a) & (torch.arange(7) < a + n) for a, n in zip(*side, strict=True)])
            for side in zip(starts, sizes, strict=True)
        ]
        expected = published(student, teacher, *starts, *sizes, k=5)
        loss = kd.methods.multilevel_ot(student, teacher, *masks, k=5, form="released", backend=backend)
        torch.testing.assert_close(loss.total, expected, rtol=1e-12, atol=0)
        torch.testing.assert_close(gradient(loss.total, student), gradient(expected, student), rtol=0, atol=1e-13)

    @pytest.mark.parametrize("form", FORMS)
    @pytest.mark.parametrize("flag", [*FLAGS, "none"])
    def test_each_deviation(self, form, flag):
        student, teacher, *masks = ragged()
        flags = {} if flag == "none" else {flag: not getattr(FORMS[form], flag)}
        values = formula(student, teacher, *masks, k=5, form=form, **flags)
        loss = kd.methods.multilevel_ot(student, teacher, *masks, k=5, form=form, backend="reference", **flags)
        if math.isinf(values["sl"].item()):  # padding against tokens, in the logarithm of probabilities
            assert math.isinf(loss.sl.item())
            assert (form == "paper" and flag == "include_padding") or flag == "double_softmax"
            for part in ("had", "sd"):
                torch.testing.assert_close(getattr(loss, part), values[part], rtol=1e-11, atol=0)
        else:
            assert_same(loss, values, student)

    def test_flags_change_something(self):
        student, teacher, *masks = ragged()
        for form in FORMS:
            base = kd.methods.multilevel_ot(student, teacher, *masks, k=5, form=form, backend="reference")
            for flag in FLAGS:
                other = {flag: not getattr(FORMS[form], flag)}
                loss = kd.methods.multilevel_ot(student, teacher, *masks, k=5, form=form, backend="reference", **other)
                assert loss.total != base.total, (form, flag)

    def test_all_but_padding_on_equal_lengths(self):
        student, teacher = logits(2, 4, 9).requires_grad_(), logits(2, 4, 8)
        masks = [torch.ones(2, 4, dtype=torch.bool)] * 2
        for form in FORMS:
            for include in (False, True):
                options = {"k": 5, "form": form, "include_padding": include, "double_softmax": False}
                loss = kd.methods.multilevel_ot(student, teacher, *masks, backend="reference", **options)
                assert_same(loss, formula(student, teacher, *masks, **options), student)


class TestTokens:
    @pytest.mark.parametrize("form", FORMS)
    @each_backend
    def test_tokens_that_do_not_count_are_not_read(self, form, backend):
        student, teacher, *masks = ragged()
        options = {"k": 5, "form": form, "backend": backend}
        expected = kd.methods.multilevel_ot(student, teacher, *masks, **options)
        by_token = gradient(expected.total, student)
        with torch.no_grad():
            student[~masks[0]] = math.nan
            teacher[~masks[1]] = -math.inf
        loss = kd.methods.multilevel_ot(student, teacher, *masks, **options)
        assert parts(loss) == parts(expected)
        torch.testing.assert_close(gradient(loss.total, student), by_token, rtol=0, atol=0)
        assert (by_token[~masks[0]] == 0).all()

    def test_batch_of_sequences_is_their_mean(self):
        """What stands where and how long the others are changes nothing."""
        student, teacher, *masks = ragged()
        loss = kd.methods.multilevel_ot(student, teacher, *masks, k=5, backend="reference")
        alone = [
            kd.methods.multilevel_ot(
                student[b][masks[0][b]][None], teacher[b][masks[1][b]][None], k=5, backend="reference"
            ).total
            for b in range(3)
        ]
        torch.testing.assert_close(loss.total, sum(alone) / 3, rtol=1e-12, atol=0)

    @pytest.mark.parametrize("options", [{}, {"include_padding": True}, {"form": "released"}], ids=str)
    def test_unwatched(self, options, monkeypatch):
        """As on devices where lengths are not looked at."""
        student, teacher, *masks = ragged()
        expected = kd.methods.multilevel_ot(student, teacher, *masks, k=5, backend="reference", **options)
        by_token = gradient(expected.total, student)
        with torch.no_grad():
            student[~masks[0]] = math.nan

        monkeypatch.setattr(entries, "_looking_is_free", lambda device: False)
        monkeypatch.setattr(entries, "_ELEMENTS", 2 * 13)
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
        loss = kd.methods.multilevel_ot(student, teacher, *masks, k=5, backend="reference", **options)
        assert alignment.counted(masks[0], student).positions.shape == masks[0].shape
        torch.testing.assert_close(loss.total, expected.total, rtol=1e-12, atol=0)
        torch.testing.assert_close(gradient(loss.total, student), by_token, rtol=0, atol=1e-14)

    @pytest.mark.parametrize("form", FORMS)
    @each_backend
    def test_nothing_counts(self, form, backend):
        student, teacher, *masks = ragged()
        none = [torch.zeros_like(m) for m in masks]
        loss = kd.methods.multilevel_ot(student, teacher, *none, k=5, form=form, backend=backend)
        assert parts(loss) == [0] * 4
        assert (gradient(loss.total, student) == 0).all()

    @each_backend
    def test_one_side_is_empty(self, backend):
        """Such a sequence has no loss and is not counted, unless padding is."""
        student, teacher, *masks = ragged()
        masks[0][0], masks[1][2] = False, False
        loss = kd.methods.multilevel_ot(student, teacher, *masks, k=5, form="released", backend=backend)
        assert_same(loss, formula(student, teacher, *masks, k=5, form="released"), student)
        loss = kd.methods.multilevel_ot(student, teacher, *masks, k=5, backend=backend)
        assert_same(loss, formula(student, teacher, *masks, k=5), student)
        alone = kd.methods.multilevel_ot(
            student[1:2], teacher[1:2], *(m[1:2] for m in masks), k=5, backend=backend
        ).total
        torch.testing.assert_close(loss.total, alone, rtol=1e-12, atol=0)

    def test_no_sequences(self):
        student = torch.zeros(0, 4, 9, requires_grad=True)
        for form in FORMS:
            loss = kd.methods.multilevel_ot(student, torch.zeros(0, 5, 8), k=3, form=form, backend="reference")
            assert loss.total.item() == 0
            assert gradient(loss.total, student).shape == student.shape

    def test_strides(self):
        student, teacher, *masks = ragged()
        expected = kd.methods.multilevel_ot(student, teacher, *masks, k=5, backend="reference").total
        turned = student.detach().permute(2, 0, 1).contiguous().permute(1, 2, 0).requires_grad_()
        loss = kd.methods.multilevel_ot(turned, teacher, *(m.int() for m in masks), k=5, backend="reference").total
        torch.testing.assert_close(loss, expected, rtol=0, atol=0)
        torch.testing.assert_close(gradient(loss, turned), gradient(expected, student), rtol=0, atol=0)

    @settings(max_examples=50)
    @given(mask=st.lists(st.lists(st.booleans(), min_size=5, max_size=5), min_size=1, max_size=4))
    def test_alignment(self, mask):
        mask = torch.tensor(mask)
        logits = torch.zeros(*mask.shape, 1)
        positions, lengths = alignment.counted(mask, logits)
        ranks = alignment.ranks(mask, logits)
        for b, row in enumerate(mask):
            where = row.nonzero()[:, 0]
            assert lengths[b] == len(where)
            assert positions[b, : len(where)].equal(where)
            assert ranks[b, where].equal(torch.arange(len(where)))
            assert len(set(positions[b].tolist())) == positions.shape[1]


class TestEntries:
    @settings(max_examples=10)
    @given(columns=st.permutations(range(13)), others=st.permutations(range(9)), form=st.sampled_from(list(FORMS)))
    def test_entries_have_no_order(self, columns, others, form):
        torch.manual_seed(1)
        student, teacher, *masks = ragged()
        options = {"k": 5, "form": form, "iterations": 3, "backend": "reference"}
        loss = kd.methods.multilevel_ot(student, teacher, *masks, **options).total
        same = kd.methods.multilevel_ot(student[..., columns], teacher[..., others], *masks, **options).total
        torch.testing.assert_close(same, loss, rtol=1e-11, atol=0)
        torch.testing.assert_close(gradient(same, student), gradient(loss, student), rtol=0, atol=1e-12)

    def test_equal_sums_go_by_index(self):
        teacher = torch.tensor([[[1.0, 3.0, 1.0, 3.0, 0.0, 1.0], [1.0, 3.0, 1.0, 3.0, 0.0, 1.0]]])
        tokens = alignment.counted(None, teacher)
        for k in range(1, 7):
            _, ids, _ = entries.likeliest(teacher, Tokens(*tokens), [1.0], k, False, False)
            assert ids.tolist() == [[1, 3, 0, 2, 5, 4][:k]]

    def test_k_is_the_vocabulary(self):
        student, teacher = logits(2, 3, 4).requires_grad_(), logits(2, 3, 4)
        masks = [torch.ones(2, 3, dtype=torch.bool)] * 2
        loss = kd.methods.multilevel_ot(student, teacher, k=4, backend="reference")
        assert_same(loss, formula(student, teacher, *masks, k=4), student)

    @pytest.mark.parametrize("std_norm", [False, True])
    @each_backend
    def test_entries_without_mass(self, std_norm, backend):
        """-inf stands for an entry that is not there, also in a row's deviation."""
        student, teacher, *masks = ragged()
        with torch.no_grad():
            student[..., -2:] = -math.inf
            teacher[..., 3] = -math.inf
        options = {"k": 5, "std_norm": std_norm, "backend": backend}
        loss = kd.methods.multilevel_ot(student, teacher, *masks, **options)
        shorter = student.detach()[..., :-2].clone().requires_grad_()
        fewer = torch.cat([teacher[..., :3], teacher[..., 4:]], -1)
        expected = kd.methods.multilevel_ot(shorter, fewer, *masks, **options)
        torch.testing.assert_close(loss.total, expected.total, rtol=1e-12, atol=0)
        ours = gradient(loss.total, student)
        torch.testing.assert_close(ours[..., :-2], gradient(expected.total, shorter), rtol=0, atol=1e-13)
        assert (ours[..., -2:] == 0).all()

    def test_rows_of_equal_logits(self):
        student, teacher = torch.zeros(1, 3, 8, requires_grad=True), torch.randn(1, 3, 9)
        loss = kd.methods.multilevel_ot(student, teacher, k=4, form="released", backend="reference").total
        assert gradient(loss, student).isfinite().all()

    @pytest.mark.parametrize("form", FORMS)
    def test_a_row_at_a_time(self, form, monkeypatch):
        student, teacher, *masks = ragged()

        def value_and_gradient():
            loss = kd.methods.multilevel_ot(student, teacher, *masks, k=5, form=form, backend="reference").total
            return loss.detach(), gradient(loss, student)

        whole = value_and_gradient()
        monkeypatch.setattr(entries, "_ELEMENTS", 1)
        torch.testing.assert_close(value_and_gradient(), whole, rtol=1e-12, atol=1e-14)

    def test_memory(self, monkeypatch):
        """Of tensors as large as the logits only the gradient is made."""

        class Largest(TorchDispatchMode):
            sizes: list[int] = []  # noqa: RUF012

            def __torch_dispatch__(self, func, types, args=(), kwargs=None):
                out = func(*args, **(kwargs or {}))
                fresh = isinstance(out, torch.Tensor) and not any(
                    isinstance(x, torch.Tensor) and x.untyped_storage().data_ptr() == out.untyped_storage().data_ptr()
                    for x in args
                )
                self.sizes.append(out.numel() if fresh else 0)
                return out

        rows, vocabulary, k = 64, 500, 8
        monkeypatch.setattr(entries, "_ELEMENTS", 4 * vocabulary)
        z = torch.randn(2, rows, vocabulary, dtype=torch.bfloat16)
        tokens = Tokens(*alignment.counted(None, z))
        for standardise in (False, True):
            mode = Largest()
            mode.sizes.clear()
            with mode:
                log_probabilities, ids, statistics = entries.likeliest(z, tokens, [1.0, 0.5], k, standardise, False)
            assert max(mode.sizes) <= max(4 * vocabulary, log_probabilities.numel())
            mode.sizes.clear()
            with mode:
                out = entries.likeliest_backward(log_probabilities, z, tokens, ids, statistics, [1.0, 0.5], standardise)
            assert out.dtype == torch.bfloat16
            assert sorted(mode.sizes)[-1] == z.numel()
            assert sorted(mode.sizes)[-2] <= 4 * vocabulary

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
    @pytest.mark.parametrize("standardise", [False, True])
    def test_ops(self, dtype, standardise):
        z = logits(2, 3, 7, dtype=dtype)
        tokens = alignment.counted(torch.tensor([[1, 0, 1], [1, 1, 1]]), z)
        arguments = (z, *tokens, [1.0, 0.5], 4, standardise, False)
        torch.library.opcheck(OPS.likeliest.default, arguments)
        upstream, ids, statistics = OPS.likeliest(*arguments)
        upstream = torch.where(upstream.isfinite(), upstream, 0)
        torch.library.opcheck(
            OPS.likeliest_backward.default, (upstream, z, *tokens, ids, statistics, [1.0, 0.5], standardise)
        )


@pytest.mark.parametrize("form", FORMS)
def test_compiled(form):
    torch.compiler.reset()
    student, teacher, *masks = ragged(torch.float32)

    def loss(student):
        return kd.methods.multilevel_ot(student, teacher, *masks, k=5, form=form, iterations=2, backend="cpu")

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    ours, expected = compiled(student), loss(student)
    for part in PARTS:
        torch.testing.assert_close(getattr(ours, part), getattr(expected, part))
    torch.testing.assert_close(gradient(ours.total, student), gradient(expected.total, student))


@each_backend
def test_autocast(backend):
    student, teacher, *masks = ragged(torch.bfloat16)
    expected = kd.methods.multilevel_ot(student, teacher, *masks, k=5, backend=backend)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = kd.methods.multilevel_ot(student, teacher, *masks, k=5, backend=backend)
    assert parts(loss) == parts(expected)
    assert gradient(loss.total, student).equal(gradient(expected.total, student))


def test_the_teacher_is_a_constant():
    student, teacher, *masks = ragged()
    teacher.requires_grad_()
    kd.methods.multilevel_ot(student, teacher, *masks, k=5, backend="reference").total.backward()
    assert teacher.grad is None


def test_parts_are_read_only():
    loss = kd.methods.multilevel_ot(torch.randn(1, 2, 5), torch.randn(1, 2, 4), k=2, backend="reference")
    assert isinstance(loss, kd.methods.MultilevelOTLoss)
    with pytest.raises(dataclasses.FrozenInstanceError):
        loss.had = 0


@pytest.mark.parametrize(
    ("message", "error", "options"),
    [
        ("form must be one of paper, released", ValueError, {"form": "code"}),
        ("k must be at most 9, the smaller vocabulary, got 50", ValueError, {}),
        ("k must be at least 1", ValueError, {"k": 0}),
        ("alpha must be finite and not negative", ValueError, {"k": 3, "alpha": -1.0}),
        ("beta must be a number", TypeError, {"k": 3, "beta": "0.1"}),
        ("std_norm must be True or False", TypeError, {"k": 3, "std_norm": 1}),
        ("iterations must be at least 1", ValueError, {"k": 3, "iterations": 0}),
        ("student_mask must have the shape of the rows", ValueError, {"k": 3, "student_mask": torch.ones(3, 5).bool()}),
        ("teacher_mask must be bool or integer", TypeError, {"k": 3, "teacher_mask": torch.ones(3, 7)}),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)  # fmt: skip
def test_bad_arguments(message, error, options):
    student, teacher, *_ = ragged()
    with pytest.raises(error, match=message):
        kd.methods.multilevel_ot(student, teacher, backend="reference", **options)


def test_bad_shapes():
    student, teacher, *_ = ragged()
    with pytest.raises(ValueError, match=r"teacher_logits must have shape \[B, L, V\]"):
        kd.methods.multilevel_ot(student, teacher[0])
    with pytest.raises(ValueError, match="must have the same batch"):
        kd.methods.multilevel_ot(student, teacher[:2])
    with pytest.raises(TypeError, match="student_logits and teacher_logits must both be float64"):
        kd.methods.multilevel_ot(student, teacher.float())
