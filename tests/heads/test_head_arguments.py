"""Bad heads and sparse teachers: the message names the argument, what it must be and what came."""

import re

import pytest
import torch

import kd_kernels as kd

HIDDEN, WEIGHT = torch.randn(3, 4), torch.randn(7, 4)
IDS, LOGPROBS = torch.tensor([[0, 1], [2, 3], [4, 5]]), torch.full((3, 2), -1.0)
GOOD = kd.Head(HIDDEN, WEIGHT)


def error(kind, message, student, teacher=GOOD, **options):
    with pytest.raises(kind, match=f"^{re.escape(message)}"):
        kd.divergence(student, teacher, **options)


@pytest.mark.parametrize("side", ["student", "teacher"])
class TestHead:
    @pytest.fixture
    def refused(self, side):
        def refused(kind, message, **parts):
            head = kd.Head(**{"hidden": HIDDEN, "weight": WEIGHT, **parts})
            error(kind, message.format(side), *((head, GOOD) if side == "student" else (GOOD, head)))

        return refused

    @pytest.mark.parametrize("part", ["hidden", "weight", "bias"])
    def test_not_a_tensor(self, refused, part):
        refused(TypeError, part + " of the {}'s head must be a tensor, got list", **{part: [1.0]})

    @pytest.mark.parametrize("part", ["hidden", "weight", "bias"])
    def test_dtype(self, refused, part):
        message = part + " of the {}'s head must be float32, bfloat16, float16 or float64, got int64"
        refused(TypeError, message, **{part: torch.ones(7, 4, dtype=torch.int64)})

    def test_weight_shape(self, refused):
        refused(ValueError, "weight of the {}'s head must have shape [V, H], got [7]", weight=torch.randn(7))
        refused(ValueError, "weight of the {}'s head must have shape [V, H], got [0, 4]", weight=torch.randn(0, 4))

    def test_hidden_shape(self, refused):
        message = "hidden of the {}'s head must have shape [..., 4], as wide as its weight, got [3, 5]"
        refused(ValueError, message, hidden=torch.randn(3, 5))

    def test_bias_shape(self, refused):
        refused(ValueError, "bias of the {}'s head must have shape [7], got [6]", bias=torch.randn(6))

    @pytest.mark.parametrize("part", ["weight", "bias"])
    def test_device(self, refused, part):
        where = {"weight": WEIGHT, "bias": torch.randn(7)}[part].to("meta")
        refused(ValueError, part + " of the {}'s head must be on the device of hidden cpu, got meta", **{part: where})

    def test_precision(self, refused):
        message = "hidden and weight of the {}'s head must both be float64, or neither; got float32 and float64"
        refused(TypeError, message, weight=WEIGHT.double())

    @pytest.mark.parametrize("part", ["scale", "softcap"])
    def test_scale_and_softcap(self, refused, part):
        refused(TypeError, part + " of the {}'s head must be a number, got str", **{part: "1"})
        for value in (0.0, -1.0, float("nan"), 1e9):
            message = part + " of the {}'s head must be between 0.0001 and 1e+06, got " + str(value)
            refused(ValueError, message, **{part: value})


class TestTopK:
    def refused(self, kind, message, ids=IDS, logprobs=LOGPROBS, tail="bucket"):
        error(kind, message, GOOD, kd.TopK(ids, logprobs, tail))

    def test_not_tensors(self):
        self.refused(TypeError, "ids of the teacher must be a tensor, got list", ids=[[1]])
        self.refused(TypeError, "logprobs of the teacher must be a tensor, got list", logprobs=[[1.0]])

    def test_dtypes(self):
        self.refused(TypeError, "ids of the teacher must be integers, got float32", ids=IDS.float())
        self.refused(
            TypeError, "logprobs of the teacher must be float32, bfloat16, float16 or float64, got int64", logprobs=IDS
        )

    def test_shapes(self):
        message = "ids and logprobs of the teacher must have the same shape [..., K], got [3, 2] and [3, 1]"
        self.refused(ValueError, message, logprobs=LOGPROBS[:, :1])

    def test_device(self):
        self.refused(ValueError, "ids must be on the device of logprobs cpu, got meta", ids=IDS.to("meta"))

    def test_tail(self):
        self.refused(ValueError, "tail must be one of bucket, renormalize, truncate, got 'drop'", tail="drop")

    def test_ids_beyond_the_vocabulary(self):
        message = "ids of the teacher must be below the student's vocabulary of 7 entries, got 7"
        self.refused(ValueError, message, ids=IDS + 2)

    def test_is_no_student(self):
        error(TypeError, "student must be a tensor of logits or a Head, got TopK", kd.TopK(IDS, LOGPROBS))

    def test_rows(self):
        message = "student and teacher must have the same rows, got shapes [3, 4] and [2, 2]"
        self.refused(ValueError, message, ids=IDS[:2], logprobs=LOGPROBS[:2])


class TestPair:
    def test_rows(self):
        message = "student and teacher must have the same rows, got shapes [3, 4] and [2, 4]"
        error(ValueError, message, GOOD, kd.Head(HIDDEN[:2], WEIGHT))

    def test_precision(self):
        double = kd.Head(HIDDEN.double(), WEIGHT.double())
        error(TypeError, "student and teacher must both be float64, or neither; got float32 and float64", GOOD, double)

    def test_vocabularies(self):
        message = "student and teacher have vocabularies of 7 and 6 entries"
        error(ValueError, message, GOOD, kd.Head(HIDDEN, WEIGHT[:6]))


class TestChunks:
    @pytest.mark.parametrize("name", ["chunk_tokens", "memory_budget"])
    def test_sizes(self, name):
        error(TypeError, f"{name} must be an integer, got 1.5", GOOD, **{name: 1.5})
        error(TypeError, f"{name} must be an integer, got True", GOOD, **{name: True})
        error(ValueError, f"{name} must be at least 1, got 0", GOOD, **{name: 0})

    def test_not_both(self):
        message = "chunk_tokens and memory_budget both decide the size of chunks: pass one of them"
        error(ValueError, message, GOOD, chunk_tokens=1, memory_budget=10**9)

    def test_logits_have_no_use_for_them(self):
        logits = GOOD.logits()
        assert kd.divergence(logits, logits, chunk_tokens=1) == 0
