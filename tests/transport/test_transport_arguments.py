"""What bad input gets: the argument's name, what it must be, what came."""

import pytest
import torch

import kd_kernels as kd

COST = torch.rand(2, 3, 4)
LOGITS = torch.randn(2, 3, 8)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"cost": [1.0]}, TypeError, "cost must be a tensor"),
        ({"cost": COST.int()}, TypeError, "cost must be float32"),
        ({"cost": COST[0, 0]}, ValueError, r"cost must have shape \[..., n, m\], got \[4\]"),
        ({"a": torch.rand(4)}, ValueError, r"a must have shape \[3\] or \[2, 3\], got \[4\]"),
        ({"b": torch.rand(3, 4)}, ValueError, r"b must have shape \[4\] or \[2, 4\]"),
        ({"a": "even"}, ValueError, "a must be a tensor, None for ones or 'uniform'"),
        ({"a": 1.0}, TypeError, "a must be a tensor, None"),
        ({"a": torch.tensor([0.1, -0.2, 0.3])}, ValueError, "a must be finite and not negative"),
        ({"b": torch.tensor([0.1, 0.2, 0.3, float("nan")])}, ValueError, "b must be finite"),
        ({"b": torch.rand(4).double()}, TypeError, "cost and b must both be float64, or neither"),
        ({"eps": 0.0}, ValueError, "eps must be between"),
        ({"eps": True}, TypeError, "eps must be a number"),
        ({"eps": torch.rand(3) + 1}, ValueError, r"eps must be a number or have the shape \[2\], got \[3\]"),
        ({"eps": torch.tensor([0.1, float("nan")])}, ValueError, "eps must be between"),
        ({"iterations": 0}, ValueError, "iterations must be at least 1, got 0"),
        ({"iterations": 2.0}, TypeError, "iterations must be an integer"),
        ({"tol": -0.1}, ValueError, r"tol must be in \[0, 1\)"),
        ({"tol": "small"}, TypeError, "tol must be a number or None"),
        ({"lengths": torch.tensor([1, 4])}, ValueError, "lengths of rows must be between 0 and 3, got 1 to 4"),
        ({"lengths": (torch.tensor([1, 2]), torch.tensor([1.0, 2.0]))}, TypeError, "lengths of columns must be integ"),
        ({"lengths": torch.tensor([1, 2, 3])}, ValueError, r"lengths of rows must have the shape \[2\]"),
        ({"lengths": (1, 2, 3)}, ValueError, "lengths must be a tensor or a pair"),
        ({"order": "both"}, ValueError, "order must be one of rows_first, columns_first, got 'both'"),
        ({"grad": "all"}, ValueError, "grad must be one of unrolled"),
        ({"value": "sharp"}, ValueError, "value must be one of transport, entropic"),
        ({"init": (None, torch.zeros(2, 3))}, ValueError, r"g of init must have shape \[2, 4\]"),
        ({"backend": "tpu"}, ValueError, "backend must be one of"),
    ],
)
def test_sinkhorn(arguments, error, words):
    with pytest.raises(error, match=words):
        kd.sinkhorn(**{"cost": COST} | arguments)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"student": 3.0}, TypeError, "student must be a tensor of logits"),
        ({"student": LOGITS[0, 0]}, ValueError, r"student must have shape \[..., n, V\]"),
        ({"teacher": LOGITS.double()}, TypeError, "student and teacher must both be float64"),
        ({"teacher": LOGITS[:1]}, ValueError, "student and teacher must have the same batch"),
        ({"teacher": LOGITS[:, :, :5]}, ValueError, "vocabularies of 8 and 5 entries"),
        ({"student_mask": torch.ones(2, 4)}, TypeError, "student_mask must be bool or integer"),
        ({"teacher_mask": torch.ones(2, 4).bool()}, ValueError, "teacher_mask must have the shape of the rows"),
        ({"temperature": 0.0}, ValueError, "temperature must be between"),
        ({"temperature": 2.0, "softmax": False}, ValueError, "temperature divides logits"),
        ({"vocab": 9}, ValueError, "vocab must be between 1 and 8"),
    ],
)
def test_l1_cost(arguments, error, words):
    with pytest.raises(error, match=words):
        kd.l1_cost(**{"student": LOGITS, "teacher": LOGITS} | arguments)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"teacher": LOGITS[:1]}, ValueError, "student and teacher must have the same batch"),
        ({"top_k": 0}, ValueError, "top_k must be at least 1"),
        ({"reduction": "max"}, ValueError, "reduction must be one of"),
        ({"mask": torch.ones(3)}, ValueError, "mask must have the shape of the rows"),
        ({"normalizer": -1.0}, ValueError, "normalizer must be positive"),
    ],
)
def test_sorted_l1(arguments, error, words):
    with pytest.raises(error, match=words):
        kd.sorted_l1(**{"student": LOGITS, "teacher": LOGITS} | arguments)
