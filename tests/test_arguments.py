"""Every error of the public boundary: its type, and a message that names the argument, what it must be, what came."""

import importlib.util
import math
import re
import sys

import pytest
import torch

import kd_kernels as kd
from kd_kernels.backends import select
from kd_kernels.divergences import Divergence, resolve

S, T = torch.zeros(3, 5), torch.ones(3, 5)
META = torch.device("meta")


def error(kind, message, *args, **kwargs):
    """Calls `divergence`, which must raise this error, with the message from its first word."""
    with pytest.raises(kind, match=f"^{re.escape(message)}"):
        kd.divergence(*args, **kwargs)


class Uncompiled(Divergence):
    """A divergence of a user's own: half the squared Hellinger distance."""

    name = "hellinger"

    def rows(self, log_p, log_q):
        return 1 - (0.5 * (log_p + log_q)).exp().sum(-1)


@pytest.mark.parametrize("name", ["student", "teacher"])
class TestLogits:
    def pair(self, name, x):
        return (x, T) if name == "student" else (S, x)

    @pytest.mark.parametrize(("x", "came"), [([[1.0]], "list"), (None, "NoneType"), (1.0, "float")])
    def test_not_a_tensor(self, name, x, came):
        wanted = {"student": "a tensor of logits or a Head", "teacher": "a tensor of logits, a Head or a TopK"}[name]
        error(TypeError, f"{name} must be {wanted}, got {came}", *self.pair(name, x))

    @pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn])
    def test_dtype(self, name, dtype):
        came = str(dtype).removeprefix("torch.")
        error(
            TypeError, f"{name} must be float32, bfloat16, float16 or float64, got {came}",
            *self.pair(name, torch.zeros(3, 5).to(dtype)),
        )  # fmt: skip

    def test_layout(self, name):
        error(TypeError, f"{name} must be a dense tensor, got layout sparse_coo", *self.pair(name, T.to_sparse()))

    @pytest.mark.parametrize("shape", [(), (0,), (3, 0), (0, 0)])
    def test_no_vocabulary(self, name, shape):
        error(
            ValueError, f"{name} must have shape [..., V] with V >= 1, got {list(shape)}",
            *self.pair(name, torch.zeros(shape)),
        )  # fmt: skip


@pytest.mark.parametrize("shape", [(4, 5), (3, 1, 5), (5,), (1, 5)])
def test_rows_of_the_pair(shape):
    error(
        ValueError, f"student and teacher must have the same rows, got shapes [3, 5] and {list(shape)}",
        S, torch.zeros(shape),
    )  # fmt: skip


def test_device_of_the_pair():
    error(ValueError, "teacher must be on the student's device cpu, got meta", S, T.to(META))
    error(ValueError, "teacher must be on the student's device meta, got cpu", S.to(META), T)


def test_float64_on_one_side():
    message = "student and teacher must both be float64, or neither; got "
    error(TypeError, message + "float64 and float32", S.double(), T)
    error(TypeError, message + "bfloat16 and float64", S.bfloat16(), T.double())


def test_vocabularies_that_differ():
    """Names both sizes and both ways out."""
    student, teacher = torch.zeros(1, 151_936), torch.zeros(1, 152_064)
    error(
        ValueError,
        "student and teacher have vocabularies of 151936 and 152064 entries. If the extra entries are padding of the "
        "same tokenizer, pass vocab='common' to compare the first 151936 entries, or the tokenizer's size as vocab=n",
        student, teacher,
    )  # fmt: skip


@pytest.mark.parametrize("vocab", [0, -1, 6, 5_000])
def test_vocab_out_of_range(vocab):
    error(ValueError, f"vocab must be between 1 and 5, got {vocab}", S, torch.zeros(3, 9), vocab=vocab)


@pytest.mark.parametrize("vocab", ["all", True, 3.0, None, (3,)])
def test_vocab_is_something_else(vocab):
    error(ValueError, f"vocab must be 'strict', 'common' or a number of columns, got {vocab!r}", S, T, vocab=vocab)


@pytest.mark.parametrize("temperature", [0.0, -1.0, 9e-5, 1.1e6, math.inf, math.nan, 0, (1.0, 0.0), (math.nan, 1.0)])
def test_temperature_out_of_range(temperature):
    error(
        ValueError, f"temperature must be between 0.0001 and 1e+06, got {temperature!r}",
        S, T, temperature=temperature,
    )  # fmt: skip


@pytest.mark.parametrize("temperature", ["2", None, True, (), (1.0,), (1.0, 2.0, 3.0), (1.0, "2"), 1j])
def test_temperature_is_something_else(temperature):
    error(
        TypeError, f"temperature must be a number or a pair (student, teacher), got {temperature!r}",
        S, T, temperature=temperature,
    )  # fmt: skip


@pytest.mark.parametrize("temperature", [2, 2.0, (2, 2.0), [2.0, 2], torch.tensor(2.0).item()])
def test_temperature_as_any_number(temperature):
    z = torch.randn(3, 5)
    assert torch.equal(kd.divergence(z, T, temperature=temperature), kd.divergence(z, T, temperature=2.0))


@pytest.mark.parametrize("name", ["mask", "labels"])
class TestRows:
    def test_not_a_tensor(self, name):
        error(TypeError, f"{name} must be a tensor, got list", S, T, **{name: [1, 1, 1]})

    @pytest.mark.parametrize("shape", [(), (4,), (3, 1), (3, 5), (1, 3)])
    def test_shape(self, name, shape):
        rows = torch.ones(shape, dtype=torch.int64)
        error(ValueError, f"{name} must have the shape of the rows [3], got {list(shape)}", S, T, **{name: rows})

    def test_device(self, name):
        rows = torch.ones(3, dtype=torch.int64, device=META)
        error(ValueError, f"{name} must be on the student's device cpu, got meta", S, T, **{name: rows})


def test_mask_dtype():
    error(TypeError, "mask must be bool, integer or real, got complex64", S, T, mask=torch.ones(3) * 1j)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bool, torch.complex64])
def test_labels_dtype(dtype):
    came = str(dtype).removeprefix("torch.")
    error(TypeError, f"labels must be integers, got {came}", S, T, labels=torch.ones(3).to(dtype))


@pytest.mark.parametrize("ignore_index", [None, "pad", 1.5, True])
def test_ignore_index(ignore_index):
    error(
        TypeError, f"ignore_index must be an integer, got {ignore_index!r}",
        S, T, labels=torch.ones(3, dtype=torch.int64), ignore_index=ignore_index,
    )  # fmt: skip


@pytest.mark.parametrize("reduction", ["batchmean", "", None, "MEAN", 0])
def test_reduction(reduction):
    error(ValueError, f"reduction must be one of mean, sum, none, got {reduction!r}", S, T, reduction=reduction)


@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_normalizer_without_mean(reduction):
    error(
        ValueError, f"normalizer divides the sum of reduction='mean'; got reduction={reduction!r}",
        S, T, reduction=reduction, normalizer=3.0,
    )  # fmt: skip


@pytest.mark.parametrize("normalizer", [0, 0.0, -1, math.inf, math.nan])
def test_normalizer_out_of_range(normalizer):
    error(ValueError, f"normalizer must be positive and finite, got {normalizer}", S, T, normalizer=normalizer)


@pytest.mark.parametrize(("normalizer", "came"), [("3", "str"), (True, "bool"), ([3], "list"), (3j, "complex")])
def test_normalizer_is_something_else(normalizer, came):
    error(TypeError, f"normalizer must be a number or a 0-d tensor, got {came}", S, T, normalizer=normalizer)


def test_normalizer_tensors():
    error(ValueError, "normalizer must be a number or a 0-d tensor, got shape [3]", S, T, normalizer=torch.ones(3))
    error(TypeError, "normalizer must be real, got complex64", S, T, normalizer=torch.tensor(1j))


@pytest.mark.parametrize("kind", ["kl", "", "Forward_KL"])
def test_unknown_kind(kind):
    error(ValueError, f"kind must be one of {', '.join(kd.KINDS)}, got {kind!r}", S, T, kind)


@pytest.mark.parametrize(("kind", "came"), [(None, "NoneType"), (kd.JSD, "type"), (["jsd"], "list")])
def test_kind_is_something_else(kind, came):
    error(TypeError, f"kind must be a name or a Divergence, got {came}", S, T, kind)


@pytest.mark.parametrize(
    ("kind", "params", "message"),
    [
        ("jsd", {"alpha": 0.5}, "jsd takes beta; got alpha"),
        ("forward_kl", {"beta": 0.5}, "forward_kl takes no parameters; got beta"),
        ("akl", {"mu": 0.5, "beta": 1.0, "chunk": 2}, "akl takes mu; got beta, chunk"),
        ("todi", {"name": "x"}, "todi takes beta; got name"),
        (kd.JSD(0.3), {"beta": 0.5}, "JSD(beta=0.3) carries its own parameters; got also beta"),
        (kd.TVD(), {"alpha": 1, "mu": 2}, "TVD() carries its own parameters; got also alpha, mu"),
    ],
    ids=str,
)
def test_parameters_that_do_not_belong(kind, params, message):
    error(TypeError, message, S, T, kind, **params)


@pytest.mark.parametrize(
    ("cls", "parameter", "requirement", "values"),
    [
        (kd.JSD, "beta", "between 0 and 1", [-0.1, 1.1]),
        (kd.JSTeacher, "beta", "above 0 and at most 1", [-0.1, 0.0, 1.1]),
        (kd.JSStudent, "beta", "at least 0 and below 1", [-0.1, 1.0]),
        (kd.SkewForwardKL, "alpha", "at least 0 and below 1", [-0.1, 1.0]),
        (kd.SkewReverseKL, "alpha", "at least 0 and below 1", [-0.1, 1.0]),
        (kd.ToDi, "beta", "from 0 to 1e30", [-0.1]),
        (kd.AKL, "mu", "at least 0 and below 1", [-0.1, 1.0]),
    ],
)
def test_parameters_out_of_range(cls, parameter, requirement, values):
    for value in [*values, math.nan, math.inf]:
        message = f"{cls.__name__}: {parameter} must be {requirement}, got {value}"
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            cls(value)
        error(ValueError, message, S, T, cls.name, **{parameter: value})


@pytest.mark.parametrize("cls", [c for c in kd.KINDS.values() if c.__dataclass_fields__.keys() - {"name"}])
@pytest.mark.parametrize(
    ("value", "came"), [("0.5", "str"), (None, "NoneType"), (torch.tensor(0.5), "Tensor"), (True, "bool")]
)
def test_parameters_that_are_no_numbers(cls, value, came):
    (parameter,) = cls.__dataclass_fields__.keys() - {"name"}
    with pytest.raises(TypeError, match=f"^{cls.__name__}: {parameter} must be a number, got {came}$"):
        cls(value)


def test_every_kind_with_a_parameter_is_tested_for_its_range():
    with_parameters = {c.__name__ for c in kd.KINDS.values() if c.__dataclass_fields__.keys() - {"name"}}
    mark = next(m for m in test_parameters_out_of_range.pytestmark if m.name == "parametrize")
    assert {row[0].__name__ for row in mark.args[1]} == with_parameters


def test_rows_of_the_base_class():
    with pytest.raises(NotImplementedError):
        kd.divergence(S, T, Divergence(), backend="reference")


def test_objects_and_names_resolve_to_the_same():
    for name, cls in kd.KINDS.items():
        assert resolve(name, {}) == cls()
    assert resolve("jsd", {"beta": 0.3}) == kd.JSD(0.3)
    assert resolve(kd.JSD(0.3), {}) == kd.JSD(0.3)


def test_unknown_backend():
    error(ValueError, "backend must be one of auto, cpu, cuda, triton, reference, got 'rocm'", S, T, backend="rocm")
    error(ValueError, "backend must be one of auto, cpu, cuda, triton, reference, got None", S, T, backend=None)


def test_backend_that_does_not_support_the_device():
    message = "backend 'cpu' does not support float32 logits on meta"
    error(ValueError, message, S.to(META), T.to(META), backend="cpu")


def test_backend_that_does_not_support_the_dtype():
    message = "backend 'triton' does not support float64 logits on cpu"
    error(ValueError, message, S.double(), T.double(), backend="triton")


def test_message_names_both_dtypes():
    with pytest.raises(ValueError, match="does not support bfloat16 and float16 logits on meta"):
        select.choose("cpu", META, (torch.bfloat16, torch.float16))


@pytest.fixture
def without(monkeypatch):
    """Makes a module look as if it were not installed."""

    def remove(module):
        find = importlib.util.find_spec
        monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == module else find(name, *a))
        monkeypatch.setitem(sys.modules, module, None)
        monkeypatch.setattr(select, "_MISSING", select._find_missing())

    return remove


@pytest.mark.parametrize("backend", ["cpu", "auto"])
def test_core_that_was_not_built(without, backend):
    """No silent fallback: `auto` says so too, and names the way out."""
    without("kd_kernels._core")
    error(
        RuntimeError,
        "backend 'cpu' is not available: the native core was not built (install from source with a C++ compiler, or a "
        "wheel). backend='reference' runs everywhere.",
        S, T, backend=backend,
    )  # fmt: skip
    assert kd.divergence(S, T, backend="reference").isfinite()


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_triton_that_is_not_installed(without, device):
    without("triton")
    expected, message = {
        "cpu": (ValueError, "does not support float32 logits on cpu"),
        "cuda": (RuntimeError, "is not available: triton is not installed. backend='reference' runs everywhere."),
    }[device]
    with pytest.raises(expected, match=f"^backend 'triton' {re.escape(message)}$"):
        select.choose("triton", torch.device(device), (torch.float32, torch.float32))


def test_teacher_gradient_of_a_compiled_backend():
    error(ValueError, "teacher_grad=True needs backend='reference', got 'cpu'", S, T, teacher_grad=True, backend="cpu")


def test_compiled_backend_for_a_kind_without_kernel():
    error(
        ValueError,
        "Uncompiled() has no kernel; it needs backend='reference', got 'cpu'",
        S,
        T,
        Uncompiled(),
        backend="cpu",
    )


def test_auto_for_a_kind_without_kernel_is_the_reference():
    z = torch.randn(3, 5)
    expected = 1 - (z.softmax(-1) * T.softmax(-1)).sqrt().sum(-1).mean()
    torch.testing.assert_close(kd.divergence(z, T, Uncompiled()), expected)


def test_nothing_is_computed_on_half_checked_input(monkeypatch):
    """The checks come first, whatever the order of the arguments."""
    monkeypatch.setattr(select, "implementation", lambda backend: pytest.fail("computes"))
    for bad in ({"reduction": "x"}, {"vocab": 0}, {"temperature": 0.0}, {"normalizer": 0}, {"mask": [1]}, {"mu": 1}):
        with pytest.raises((ValueError, TypeError)):
            kd.divergence(S, T, **bad)
