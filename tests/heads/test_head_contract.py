"""What every loss promises, of heads and sparse teachers: rows that count, vocabularies, statistics, gradients."""

import math

import pytest
import torch
from pairs import PAIRS, PLANS, Pair, evaluate, follow, make

import kd_kernels as kd
from kd_kernels.chunks import products, sides

each_pair = pytest.mark.parametrize(("student", "teacher"), PAIRS, ids=["-".join(p) for p in PAIRS])
each_plan = pytest.mark.parametrize("plan", PLANS)
each_reduction = pytest.mark.parametrize("reduction", ["mean", "sum", "none"])

SIZES = {"tokens": 7, "vocabulary": 48}
ROWS = 61


def rows_of(side):
    return side.hidden if isinstance(side, kd.Head) else side.logprobs if isinstance(side, kd.TopK) else side


class TestRowsThatCount:
    @each_plan
    @each_pair
    @each_reduction
    def test_rubbish_in_masked_rows(self, reduction, student, teacher, plan, monkeypatch):
        """They may hold NaN; the others have the very bits they have without them."""
        follow(monkeypatch, plan, SIZES[plan])
        pair, mask = make(student, teacher), torch.arange(ROWS) % 3 != 1
        clean = evaluate(pair, "jsd", mask=mask, reduction=reduction)
        with torch.no_grad():
            for side in (pair.student, pair.teacher):
                rows_of(side)[~mask] = math.nan
        dirty = evaluate(pair, "jsd", mask=mask, reduction=reduction)
        for part, value in clean.items():
            assert torch.equal(dirty[part], value), part

    @each_plan
    @each_pair
    @each_reduction
    def test_no_row_counts(self, reduction, student, teacher, plan, monkeypatch):
        follow(monkeypatch, plan, SIZES[plan])
        pair = make(student, teacher)
        result = evaluate(pair, "reverse_kl", mask=torch.zeros(ROWS), reduction=reduction)
        assert not any(x.any() for x in result.values())
        assert all(x.grad is not None for x in pair.leaves.values())

    @each_pair
    def test_masked_rows_are_not_projected(self, student, teacher, monkeypatch):
        if "head" not in (student, teacher):
            pytest.skip("nothing to project")
        projected = []
        project = products.project
        monkeypatch.setattr(sides, "project", lambda h, *rest: projected.append(len(h)) or project(h, *rest))
        evaluate(make(student, teacher), "jsd", mask=torch.arange(ROWS) < 20)
        assert sum(projected) == 20 * [student, teacher].count("head")

    def test_labels(self):
        pair, labels = make("head", "head"), torch.arange(ROWS)
        labels[::2] = -100
        by_labels = evaluate(pair, "jsd", labels=labels, reduction="mean")
        by_mask = evaluate(pair, "jsd", mask=labels != -100, reduction="mean")
        for part, value in by_mask.items():
            assert torch.equal(by_labels[part], value)

    @each_plan
    def test_normalizer(self, plan, monkeypatch):
        follow(monkeypatch, plan, SIZES[plan])
        pair = make("head", "head")
        total = evaluate(pair, "jsd")
        for normalizer in (4.0, torch.tensor(4.0)):
            mean = evaluate(pair, "jsd", reduction="mean", normalizer=normalizer)
            for part, value in total.items():
                torch.testing.assert_close(mean[part], value / 4)


class TestVocabulary:
    @each_plan
    @pytest.mark.parametrize("vocab", ["common", 150])
    @pytest.mark.parametrize(("student", "teacher"), [("head", "head"), ("head", "logits"), ("logits", "head")])
    def test_first_columns(self, student, teacher, vocab, plan, monkeypatch):
        follow(monkeypatch, plan, SIZES[plan])
        wide, narrow = make(student, teacher), make(student, teacher, vocab=180)
        pair = Pair(wide.student, narrow.teacher)
        n = 180 if vocab == "common" else vocab
        actual = evaluate(pair, "jsd", vocab=vocab)
        expected = evaluate(
            Pair(wide.student, narrow.teacher).to(torch.float64), "jsd", vocab=vocab, backend="reference"
        )
        for part, value in expected.items():
            torch.testing.assert_close(actual[part].double(), value, rtol=1e-4, atol=1e-5)
        for part in ("weight", "bias"):
            if part in actual:
                assert not actual[part][n:].any()
        if "logits" in actual:
            assert not actual["logits"][:, n:].any()

    def test_strict(self):
        pair, other = make("head", "head"), make("head", "head", vocab=100)
        with pytest.raises(ValueError, match=r"vocabularies of 203 and 100 entries.*vocab='common'"):
            kd.divergence(pair.student, other.teacher)

    @each_plan
    def test_entries_beyond_the_columns_join_the_tail(self, plan, monkeypatch):
        follow(monkeypatch, plan, SIZES[plan])
        pair = make("head", "bucket")
        kept = kd.TopK(pair.teacher.ids.masked_fill(pair.teacher.ids >= 100, -1), pair.teacher.logprobs, "bucket")
        expected = evaluate(Pair(pair.student, kept), "jsd", vocab=100)
        for part, value in evaluate(pair, "jsd", vocab=100).items():
            assert torch.equal(value, expected[part])


class TestSparseTeachers:
    @pytest.mark.parametrize("tail", ["bucket", "renormalize", "truncate"])
    def test_duplicates_count_together(self, tail):
        student = make("head", "head").student
        ids = torch.tensor([[5, 9, 5, 7, 5]]).expand(ROWS, 5)
        p = torch.tensor([0.1, 0.3, 0.15, 0.2, 0.05]).expand(ROWS, 5)
        merged = kd.TopK(
            torch.tensor([[5, 7, 9]]).expand(ROWS, 3), torch.tensor([0.3, 0.2, 0.3]).log().expand(ROWS, 3), tail
        )
        expected = evaluate(Pair(student, merged), "jsd")
        for part, value in evaluate(Pair(student, kd.TopK(ids, p.log(), tail)), "jsd").items():
            torch.testing.assert_close(value, expected[part], rtol=1e-5, atol=1e-6)

    @pytest.mark.parametrize("tail", ["bucket", "renormalize", "truncate"])
    @pytest.mark.parametrize(("id", "logprob"), [(-1, -0.5), (-100, 0.0), (0, -math.inf), (3, -1000.0), (0, -1e30)])
    def test_padding(self, id, logprob, tail):
        student = make("head", "head").student
        ids, logprobs = torch.arange(4).expand(ROWS, 4), torch.tensor([0.4, 0.2, 0.1, 0.05]).log().expand(ROWS, 4)
        expected = evaluate(Pair(student, kd.TopK(ids, logprobs, tail)), "reverse_kl")
        padded = kd.TopK(
            torch.cat([ids, torch.full((ROWS, 2), id)], 1),
            torch.cat([logprobs, torch.full((ROWS, 2), logprob)], 1),
            tail,
        )
        for part, value in evaluate(Pair(student, padded), "reverse_kl").items():
            torch.testing.assert_close(value, expected[part], rtol=1e-6, atol=1e-7)

    def test_bucket_bounds_the_whole_from_below(self):
        """Merging entries loses information; every f-divergence says so."""
        pair = make("head", "logits")
        logprobs, ids = pair.teacher.log_softmax(-1).topk(9)
        for kind in ("forward_kl", "reverse_kl", "jsd", "tvd", "skew_forward_kl"):
            whole = kd.divergence(pair.student, pair.teacher, kind, reduction="none")
            bucket = kd.divergence(pair.student, kd.TopK(ids, logprobs), kind, reduction="none")
            assert (bucket >= 0).all()
            assert (bucket <= whole * (1 + 1e-5)).all()

    def test_ids_of_any_integer_type(self):
        pair = make("head", "bucket")
        expected = evaluate(pair, "jsd")
        narrow = kd.TopK(pair.teacher.ids.to(torch.int32), pair.teacher.logprobs)
        for part, value in evaluate(Pair(pair.student, narrow), "jsd").items():
            assert torch.equal(value, expected[part])

    @each_plan
    @pytest.mark.parametrize("tail", ["bucket", "renormalize", "truncate"])
    def test_stats(self, tail, plan, monkeypatch):
        follow(monkeypatch, plan, SIZES[plan])
        pair, mask = make("head", tail), torch.arange(ROWS) % 4 != 0
        _, stats = kd.divergence(pair.student, pair.teacher, mask=mask, reduction="none", return_stats=True)
        q = pair.student.logits().double().softmax(-1)
        for row in range(ROWS):
            listed = pair.teacher.logprobs[row] > -1000
            ids, p = pair.teacher.ids[row][listed], pair.teacher.logprobs[row][listed].double().exp()
            ids, p = ids[ids >= 0], p[ids >= 0]
            distinct = ids.unique()
            likeliest = q[row].topk(max(1, len(distinct))).indices
            expected = [q[row][distinct].sum(), p.sum(), torch.isin(distinct, likeliest).sum() / max(1, len(distinct))]
            actual = [stats.student_mass[row], stats.teacher_mass[row], stats.overlap[row]]
            for a, b in zip(actual, expected, strict=True):
                assert a.item() == pytest.approx(b.item() if mask[row] else 0.0, rel=1e-5, abs=1e-7)
        assert stats.n_valid == mask.sum()

    def test_dense_losses_have_no_masses(self):
        pair = make("head", "head")
        _, stats = kd.divergence(pair.student, pair.teacher, return_stats=True)
        assert stats.student_mass is stats.teacher_mass is stats.overlap is None


class TestStats:
    @each_plan
    def test_entropies(self, plan, monkeypatch):
        follow(monkeypatch, plan, SIZES[plan])
        pair, mask = make("head", "head"), torch.arange(ROWS) % 2
        options = {"mask": mask, "reduction": "none", "return_stats": True, "temperature": 2.0}
        _, actual = kd.divergence(pair.student, pair.teacher, **options)
        _, dense = kd.divergence(pair.student.logits(), pair.teacher.logits(), **options)
        torch.testing.assert_close(actual.student_entropy, dense.student_entropy, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(actual.teacher_entropy, dense.teacher_entropy, rtol=1e-5, atol=1e-6)
        assert actual.n_valid == mask.sum()


class TestGradients:
    @each_plan
    @pytest.mark.parametrize("frozen", [("hidden",), ("weight",), ("hidden", "bias"), ("weight", "bias")], ids="+".join)
    def test_products_that_nobody_needs_are_skipped(self, frozen, plan, monkeypatch):
        follow(monkeypatch, plan, SIZES[plan])
        pair = make("head", "head")
        everything = evaluate(pair, "jsd")
        for name in frozen:
            pair.leaves[name].requires_grad_(False)
        added = []
        add = products.ProductSum.add
        monkeypatch.setattr(products.ProductSum, "add", lambda self, *a, **k: added.append(self) or add(self, *a, **k))
        some = evaluate(pair, "jsd")
        for name, value in everything.items():
            assert some[name] is None if name in frozen else torch.equal(some[name], value)
        assert len(set(map(id, added))) == 2 - len({"hidden", "weight"} & set(frozen))

    @each_pair
    def test_teacher_gets_none(self, student, teacher):
        pair = make(student, teacher)
        rows_of(pair.teacher).requires_grad_()
        evaluate(pair, "jsd")
        assert rows_of(pair.teacher).grad is None

    def test_teacher_where_asked(self):
        pair = make("head", "head", torch.float64)
        pair.teacher.weight.requires_grad_()
        kd.divergence(pair.student, pair.teacher, teacher_grad=True).backward()
        assert pair.teacher.weight.grad.any()
        with pytest.raises(ValueError, match="teacher_grad=True needs backend='reference'"):
            kd.divergence(pair.student, pair.teacher, teacher_grad=True, backend="cpu")

    @each_pair
    @each_reduction
    def test_values_do_not_depend_on_whether_gradients_are_wanted(self, reduction, student, teacher):
        pair = make(student, teacher)
        with_graph = kd.divergence(pair.student, pair.teacher, "todi", reduction=reduction)
        with torch.no_grad():
            without = kd.divergence(pair.student, pair.teacher, "todi", reduction=reduction)
        assert with_graph.requires_grad
        assert not without.requires_grad
        assert torch.equal(with_graph, without)

    @each_pair
    def test_the_callers_tensors_are_not_changed(self, student, teacher):
        pair, same = make(student, teacher), make(student, teacher)
        evaluate(pair, "jsd", mask=torch.arange(ROWS) % 2)
        for a, b in ((pair.student, same.student), (pair.teacher, same.teacher)):
            assert torch.equal(rows_of(a), rows_of(b))
            if isinstance(a, kd.Head):
                assert torch.equal(a.weight, b.weight)


class TestWeightGradients:
    """Many chunks are as exact as one."""

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=lambda x: str(x).removeprefix("torch."))
    def test_many_chunks(self, dtype):
        pair = make("head", "head", dtype, rows=512, hidden=48, vocab=90)
        one = evaluate(pair, "forward_kl", chunk_tokens=512)["weight"].double()
        many = evaluate(pair, "forward_kl", chunk_tokens=4)["weight"].double()
        # What the products have to sum up: gradients of logits as the kernels round them, which no chunking changes.
        leaf = pair.student.logits().detach().requires_grad_()
        kd.divergence(leaf, pair.teacher.logits().detach(), "forward_kl", reduction="sum").backward()
        truth = leaf.grad.double().t() @ pair.student.hidden.detach().double()
        error_one, error_many = ((x - truth).abs().max() for x in (one, many))
        assert error_many <= 1.05 * error_one


class TestShapes:
    @pytest.mark.parametrize("lead", [(), (1,), (2, 3), (2, 1, 3), (0,), (3, 0)])
    @pytest.mark.parametrize("teacher", ["head", "bucket"])
    def test_leading_shapes(self, lead, teacher):
        n = math.prod(lead)
        flat = make("head", teacher, rows=max(n, 5))
        student = kd.Head(flat.student.hidden[:n].detach().reshape(*lead, 16).requires_grad_(), flat.student.weight)
        if teacher == "head":
            other = kd.Head(flat.teacher.hidden[:n].reshape(*lead, 19), flat.teacher.weight)
            whole = kd.Head(flat.teacher.hidden[:n], flat.teacher.weight)
        else:
            other = kd.TopK(flat.teacher.ids[:n].reshape(*lead, 9), flat.teacher.logprobs[:n].reshape(*lead, 9))
            whole = kd.TopK(flat.teacher.ids[:n], flat.teacher.logprobs[:n])
        losses = kd.divergence(student, other, "jsd", reduction="none")
        assert losses.shape == lead
        expected = kd.divergence(kd.Head(flat.student.hidden[:n], flat.student.weight), whole, "jsd", reduction="none")
        assert torch.equal(losses.flatten(), expected)
        losses.sum().backward()
        assert student.hidden.grad.shape == (*lead, 16)
        assert kd.divergence(student, other).isfinite()

    @each_plan
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
    def test_no_row_counts_in_any_dtype(self, dtype, plan, monkeypatch):
        follow(monkeypatch, plan, SIZES[plan])
        pair = make("head", "head", dtype)
        assert not any(x.any() for x in evaluate(pair, "jsd", mask=torch.zeros(ROWS)).values())

    @each_plan
    @each_pair
    def test_layouts(self, student, teacher, plan, monkeypatch):
        """Transposed weights and rows give the same numbers."""
        follow(monkeypatch, plan, SIZES[plan])
        pair = make(student, teacher, torch.float64)
        expected = evaluate(pair, "jsd")

        def turned(x):
            return x.detach().t().contiguous().t()

        def turn(side, leaf):
            if isinstance(side, kd.Head):
                hidden, weight = (turned(x).requires_grad_(leaf) for x in (side.hidden, side.weight))
                return kd.Head(hidden, weight, side.bias)
            if isinstance(side, kd.TopK):
                return kd.TopK(turned(side.ids), turned(side.logprobs), side.tail)
            return turned(side).requires_grad_(leaf)

        actual = evaluate(Pair(turn(pair.student, True), turn(pair.teacher, False)), "jsd")
        for part, value in expected.items():
            torch.testing.assert_close(actual[part], value, rtol=1e-9, atol=1e-11)

    def test_one_entry(self):
        pair = make("head", "head", vocab=1)
        assert not any(x.any() for x in evaluate(pair, "jsd").values())
