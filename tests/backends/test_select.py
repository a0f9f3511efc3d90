"""Which backend a call gets, where the CUDA kernels were built and where they were not."""

import sys

import pytest
import torch

import kd_kernels as kd
from kd_kernels.backends import select

CUDA, CPU = torch.device("cuda", 0), torch.device("cpu")
SINGLE = (torch.float32, torch.float32)
# A table in which the CUDA kernels have rows and l1_cost alone, whatever they have by now.
PARTIAL = select.Support(
    frozenset({"cuda"}), frozenset({torch.float32, torch.bfloat16}), frozenset({"rows", "l1_cost"}),
    mixed=False, capability=(8, 0), completed_by="triton",
)  # fmt: skip


@pytest.fixture
def machine(monkeypatch):
    """A machine on which these backends are missing, with a GPU of this compute capability, or none."""

    def describe(missing=(), capability=None):
        monkeypatch.setitem(select.SUPPORT, "cuda", PARTIAL)
        monkeypatch.setattr(select, "_MISSING", dict.fromkeys(missing, "it was not built"))
        monkeypatch.setattr(torch.cuda, "is_available", lambda: capability is not None)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)

    return describe


@pytest.mark.parametrize(
    ("dtypes", "groups", "expected"),
    [
        (SINGLE, ("rows",), "cuda"),
        (SINGLE, ("l1_cost",), "cuda"),
        (SINGLE, ("sinkhorn",), "triton"),
        (SINGLE, select.HEADS, "cuda"),  # rows decide; slices are Triton's
        (SINGLE, select.SPARSE_TEACHER, "triton"),
        ((torch.bfloat16, torch.float32), ("rows",), "triton"),
        ((torch.float16, torch.float16), ("rows",), "triton"),
        ((torch.float64, torch.float64), ("rows",), "reference"),
    ],
)  # fmt: skip
def test_auto_takes_the_cuda_kernels_where_the_table_has_them(machine, dtypes, groups, expected):
    machine()
    assert select.choose("auto", CUDA, dtypes, groups) == expected
    machine(missing=["cuda"])
    assert select.choose("auto", CUDA, dtypes, groups) == expected.replace("cuda", "triton")


@pytest.mark.parametrize(("capability", "expected"), [((7, 5), "triton"), ((8, 0), "cuda"), ((12, 1), "cuda")])
def test_auto_looks_at_the_compute_capability(machine, capability, expected):
    machine(capability=capability)
    assert select.choose("auto", CUDA, SINGLE) == expected


@pytest.mark.parametrize(
    ("capability", "device", "dtypes", "groups", "message"),
    [
        (None, CPU, SINGLE, ("rows",), "float32 logits on cpu"),
        (None, CUDA, (torch.float32, torch.bfloat16), ("rows",), "float32 and bfloat16 logits on cuda"),
        ((7, 5), CUDA, SINGLE, ("rows",), "float32 logits on cuda of compute capability 7.5, below 8.0"),
        (None, CUDA, SINGLE, ("sorted_l1",), "sorted_l1; backend='auto' takes 'triton' for that"),
        (None, CUDA, SINGLE, select.HEADS, "slices; backend='auto' takes 'triton' for that"),
    ],
    ids=["device", "mixed", "old", "group", "heads"],
)  # fmt: skip
def test_asked_for_by_name_it_runs_or_raises(machine, capability, device, dtypes, groups, message):
    machine(capability=capability)
    with pytest.raises(ValueError, match=f"^backend 'cuda' does not support {message}$"):
        select.choose("cuda", device, dtypes, groups)
    machine(missing=["cuda"], capability=(9, 0))
    with pytest.raises(RuntimeError, match=r"^backend 'cuda' is not available: it was not built\."):
        select.choose("cuda", CUDA, SINGLE)


def test_what_completes_a_backend_must_be_there_too(machine):
    machine(missing=["triton"])
    assert select.choose("auto", CUDA, SINGLE) == "cuda"
    with pytest.raises(RuntimeError, match=r"^backend 'triton' is not available: it was not built\."):
        select.choose("auto", CUDA, SINGLE, select.HEADS)


def test_the_reason_names_the_compiler(monkeypatch):
    find = select.importlib.util.find_spec
    monkeypatch.setattr(
        select.importlib.util, "find_spec", lambda name: None if name == "kd_kernels._cuda" else find(name)
    )
    assert "need nvcc" in select._find_missing()["cuda"]


def test_no_cuda_kernels_on_amd(monkeypatch):
    monkeypatch.setattr(select.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(torch.version, "hip", "7.0")
    assert select._find_missing() == {"cuda": "this PyTorch is made for AMD GPUs"}


@pytest.mark.parametrize("backend", ["cpu", "cuda", "triton"])
def test_a_backend_has_the_functions_of_its_groups(backend):
    """And of others none, so that nothing runs that the table does not know."""
    if select.unavailable(backend):
        pytest.skip(select.unavailable(backend))
    select.implementation(backend)
    module = sys.modules[f"kd_kernels.backends.{backend}"]
    for group, names in select.GROUPS.items():
        supported = group in select.SUPPORT[backend].groups
        assert {name: hasattr(module, name) for name in names} == dict.fromkeys(names, supported)


def test_functions_it_lacks_come_from_another(monkeypatch):
    class Own:
        row_losses = "own"

    monkeypatch.setattr(select, "implementation", lambda name: type("Other", (), {"slice_sums": f"of {name}"}))
    completed = select._Completed(Own, frozenset({"slice_sums"}), "triton")
    assert (completed.row_losses, completed.slice_sums) == ("own", "of triton")
    with pytest.raises(AttributeError):
        completed.tail_logits  # noqa: B018


def test_the_capability_is_a_constant_to_the_compiler(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))

    @torch.compile(fullgraph=True, backend="eager")
    def f(x):
        return x + select._capability(x.device)[0]

    assert f(torch.zeros(1)) == 9


def test_a_head_runs_on_the_backend_that_auto_takes(monkeypatch):
    """The op gets the name of the first group's backend."""
    asked = []
    choose = select.choose
    monkeypatch.setattr(select, "choose", lambda *args: asked.append(args[3]) or choose(*args))
    hidden, weight, logits = torch.randn(2, 4), torch.randn(5, 4), torch.randn(2, 5)
    kd.divergence(kd.Head(hidden, weight), logits)
    kd.divergence(logits, kd.TopK(torch.tensor([[0, 1], [2, 3]]), torch.full((2, 2), -1.0)))
    kd.divergence(logits, logits)
    kd.l1_cost(logits, logits)
    kd.sinkhorn(torch.rand(2, 2))
    kd.sorted_l1(logits, logits)
    assert asked == [select.HEADS, select.SPARSE_TEACHER, ("rows",), ("l1_cost",), ("sinkhorn",), ("sorted_l1",)]
