"""What can only be seen on a GPU: work goes to the current stream of the tensors' device, and into CUDA graphs."""

import pytest
import torch
from losses import cases, logits, problem, step

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
each_case = pytest.mark.parametrize(("name", "backend"), list(cases()))


@each_case
def test_capture(name, backend):
    """A replay, on other numbers in the same memory, gives the bits of a call."""
    x, y, loss = problem(name)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step(loss, x, y, backend)  # what is compiled, is compiled here
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step(loss, x, y, backend)
    for _ in range(2):
        with torch.no_grad():
            x.copy_(logits(*x.shape, device="cuda"))
            y.copy_(logits(*y.shape, device="cuda"))
        graph.replay()
        for actual, expected in zip(captured, step(loss, x, y, backend), strict=True):
            assert torch.equal(actual, expected)


@each_case
def test_the_current_stream(name, backend):
    """Behind work that takes its time on a stream of its own: a kernel elsewhere would see the memory before it."""
    x, y, loss = problem(name)
    expected = step(loss, x, y, backend)
    values, side = x.detach().clone(), torch.cuda.Stream()
    with torch.no_grad():
        x.fill_(float("nan"))
    torch.cuda.synchronize()
    with torch.cuda.stream(side):
        torch.cuda._sleep(50_000_000)
        with torch.no_grad():
            x.copy_(values)
        actual = step(loss, x, y, backend)
    side.synchronize()
    for a, b in zip(actual, expected, strict=True):
        assert torch.equal(a, b)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
@each_case
def test_another_device(name, backend):
    """The device of the tensors need not be the current one, which stays what it was."""
    x, y, loss = problem(name)
    expected = step(loss, x, y, backend)
    elsewhere = step(loss, x.detach().to("cuda:1").requires_grad_(), y.to("cuda:1"), backend)
    assert torch.cuda.current_device() == 0
    for a, b in zip(elsewhere, expected, strict=True):
        assert torch.equal(a.to("cuda:0"), b)


@each_case
def test_nothing_waits(name, backend):
    """No call looks at a number on the host."""
    x, y, loss = problem(name)
    step(loss, x, y, backend)
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(loss, x, y, backend)
    finally:
        torch.cuda.set_sync_debug_mode("default")
