import dataclasses

import pytest
import torch

import kd_kernels as kd
from kd_kernels.backends import cpu, select
from kd_kernels.cli import info, main, selftest


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    """The interpreter, which the suite uses, is slow: one backend of compiled code will do."""
    monkeypatch.setattr(selftest, "KINDS", {"jsd": kd.JSD, "tvd": kd.TVD})
    devices = info.devices
    monkeypatch.setattr(info, "devices", lambda backend: [] if backend == "triton" else devices(backend))


def test_passes_and_prints_a_table(capsys):
    assert main(["selftest"]) == 0
    printed = capsys.readouterr().out
    assert "reference   cpu scalar" in printed
    assert "\njsd " in printed
    assert "FAILED" not in printed
    assert printed.endswith("all passed\n")


def test_every_kind_has_fixed_numbers():
    assert set(selftest.GOLDEN) == {*kd.KINDS, *selftest.TRANSPORT}


def _break(monkeypatch, change):
    """The CPU backend with `change(loss, gradient)` planted into it."""
    correct = cpu.divergence

    def broken(*args):
        loss, gradient, entropy = correct(*args)
        change(loss, gradient)
        return loss, gradient, entropy

    monkeypatch.setattr(cpu, "divergence", broken)


FAULTS = {
    "value": lambda loss, gradient: loss.mul_(1.001),
    "gradient": lambda loss, gradient: gradient.mul_(1.01),
    "one entry": lambda loss, gradient: gradient[..., -1:].zero_(),
    "NaN": lambda loss, gradient: gradient[:1].fill_(torch.nan),
    "exception": lambda loss, gradient: 1 / 0,
}


@pytest.mark.parametrize("name", ["sinkhorn", "l1_cost_backward", "sorted_l1"])
def test_fails_when_transport_is_wrong(name, monkeypatch, capsys):
    correct = getattr(cpu, name)

    def broken(*args):
        results = correct(*args)
        (results if isinstance(results, torch.Tensor) else results[0]).mul_(1.001)
        return results

    monkeypatch.setattr(cpu, name, broken)
    assert main(["selftest"]) == 1
    assert f"FAILED {'sorted_l1' if name == 'sorted_l1' else 'sinkhorn'}, cpu scalar: " in capsys.readouterr().out


@pytest.mark.parametrize("fault", FAULTS)
def test_fails_when_a_backend_is_wrong(fault, monkeypatch, capsys):
    _break(monkeypatch, FAULTS[fault])
    assert main(["selftest"]) == 1
    printed = capsys.readouterr().out
    assert "FAILED jsd, cpu scalar: " in printed
    assert printed.splitlines()[-1].endswith("failed")


def test_fails_when_the_reference_is_wrong(monkeypatch, capsys):
    correct = kd.TVD.rows
    monkeypatch.setattr(kd.TVD, "rows", lambda self, log_p, log_q: correct(self, log_p, log_q) * 1.001)
    assert main(["selftest"]) == 1
    assert "FAILED tvd, reference: float64, fixed numbers" in capsys.readouterr().out


def test_fails_without_the_kernels_for_a_device_that_is_here(monkeypatch, capsys):
    monkeypatch.setattr(
        select, "unavailable", lambda backend: "the native core was not built" if backend == "cpu" else None
    )
    monkeypatch.setattr(info, "devices", lambda backend: ["cpu"] if backend == "reference" else [])
    assert main(["selftest"]) == 1
    assert "FAILED cpu: the native core was not built" in capsys.readouterr().out


def test_leaves_the_instruction_set_as_it_was():
    from kd_kernels import _core

    before = _core.simd()
    main(["selftest"])
    assert _core.simd() == before


def test_what_a_backend_lacks_is_left_out(monkeypatch):
    """As the table of backends says; what it has is still tested."""
    support = dataclasses.replace(select.SUPPORT["cpu"], groups=frozenset({"rows", "sinkhorn"}))
    monkeypatch.setitem(select.SUPPORT, "cpu", support)
    column = selftest.Column("cpu", "cpu", "cpu")
    assert selftest.check("sinkhorn", column) == selftest.check("sorted_l1", column) == []
    assert selftest._cell([]) == ""
    assert {check.part for check in selftest.check("tvd", column)} == {"losses", "gradient"}
