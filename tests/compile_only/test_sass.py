"""The machine code of the row kernels: what an element costs, and what moves between memory and chip."""

import json

import pytest

from bench import resources, sass
from bench.committed import between
from kd_kernels.backends import select
from kd_kernels.testing import cuda_binaries
from kd_kernels.testing.cuda_binaries import Code, Instruction

# Special functions of an element of a far row: an exponential a side in the first sweep, what a divergence asks for
# beyond, and one exponential at the end where its terms were kept.
SPECIAL = {
    "KlRows<true, false>": 4, "KlRows<false, true>": 3, "KlRows<true, true>": 4, "AklRows": 6, "TvdRows": 5,
    "JsdRows": 6, "MixtureRows<false>": 7, "MixtureRows<true>": 7, "TodiRows<true>": 6, "TodiRows<false>": 7,
}  # fmt: skip


@pytest.fixture(scope="module")
def kernels():
    if select.unavailable("cuda") is not None:
        pytest.skip(select.unavailable("cuda"))
    if cuda_binaries.cuobjdump() is None:
        pytest.skip("there is no cuobjdump")
    return {code.kernel: code for code in sass.row_kernels()}


def test_special_functions_are_within_budget(kernels):
    for size in (2, 4):
        found = {
            family: sass.far(sass.sweeps(kernels[f"row_kernel_on_chip<{family}, {size}>"]))["special"]
            for family in SPECIAL
        }
        assert all(0 < found[family] <= SPECIAL[family] for family in SPECIAL), found


def test_an_element_is_loaded_once_a_side_and_stored_once(kernels):
    """From memory by two bulk copies, not in a sweep; to memory by vectors, in sweeps of which a row runs one."""
    assert len(kernels) == 2 * len(SPECIAL)
    for code in kernels.values():
        assert sass.traffic(code)["bulk load"] == 2, code.kernel
        assert not sass.traffic(code).keys() & {"LDG.64", "LDG.128"}, code.kernel
        sweeps = sass.sweeps(code)
        assert sum(sweep.whole for sweep in sweeps) >= 3, code.kernel
        assert any(sweep.counts["STG.128"] for sweep in sweeps), code.kernel
        for sweep in sweeps:
            assert not any(name.startswith(("LDG", "LDL", "STL")) for name in sweep.counts), code.kernel
            assert sweep.counts["STG.128"] <= 1, code.kernel


def test_the_committed_report_is_of_this_code(kernels):
    committed = json.loads(sass.REPORT.read_text())
    page = "\n".join(sass.table(committed)) + "\n"
    assert sass.PAGE.read_text() == between(sass.PAGE, "sass", page)
    if resources.release() != committed["nvcc"]:
        pytest.skip(f"the report is of nvcc {committed['nvcc']}, the module of {resources.release()}")
    assert sass.report(list(kernels.values())) == committed, "python -m bench sass --write"


def loop(*names: str) -> list[Instruction]:
    body = [Instruction(16 * (i + 1), "", name, "R1, R2") for i, name in enumerate(names)]
    return [Instruction(0, "", "MOV", "R1, R2"), *body, Instruction(16 * len(body) + 16, "@P0", "BRA", "0x10")]


def test_what_is_counted():
    """Eight elements, two results of each paired operation, and a loop over something else."""
    names = ["LDS.128", "LDS.128", *["MUFU.EX2"] * 16, "FFMA", "FFMA2", "FADD.FTZ", "STG.E.128", "LDG.E.CONSTANT"]
    (sweep,) = sass.sweeps(Code("row_kernel_on_chip<KlRows<true, true>, 2>", "sm_90a", loop(*names)))
    assert (sweep.elements, sweep.whole, sweep.special, sweep.fp32, sweep.total) == (8, True, 16, 4, 24)
    assert (sweep.counts["STG.128"], sweep.counts["LDG.32"]) == (1, 1)
    assert sass.far([sweep]) == {"special": 2, "fp32": 0.5, "instructions": 3}
    (part,) = sass.sweeps(Code("row_kernel_on_chip<KlRows<true, true>, 4>", "sm_90a", loop("LDS.64", "LDS.64", "FADD")))
    assert (part.elements, part.whole) == (2, False)
    for others in (loop("LDS.128", "LDS.128", "LDS", "FADD"), loop("LDS.128", "LDS.128", "STS.128")):
        assert sass.sweeps(Code("row_kernel_on_chip<KlRows<true, true>, 4>", "sm_90a", others)) == []


def test_what_moves_between_memory_and_chip():
    names = ["UBLKCP.S.G", "UBLKCP.S.G", "LDG.E.U16", "STG.E.128", "UBLKCP.G.S", "STG.E.EF.128"]
    found = sass.traffic(Code("row_kernel_on_chip<AklRows, 2>", "sm_90a", loop(*names)))
    assert found == {"bulk load": 2, "STG.128": 2, "bulk store": 1}
