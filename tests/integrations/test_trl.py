"""TRL's trainers with the losses of this library, against themselves."""

import json
import logging
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("trl")

import trl_runs
from torch import nn
from trl.experimental.gkd import gkd_trainer
from trl.experimental.gold import gold_trainer
from trl.trainer import distillation_trainer

import kd_kernels as kd
import kd_kernels.integrations.trl as kd_trl
from kd_kernels.integrations.replacement import Target, prepare
from kd_kernels.integrations.trl.patching import TARGETS

pytestmark = pytest.mark.filterwarnings("ignore")

# In float64: where two sorted probabilities are close, rounding decides the sign of a gradient.
ACROSS = {"kind": "gold", "across": True, "use_uld_loss": True, "dtype": torch.float64}
HYBRID = ACROSS | {"uld_use_hybrid_loss": True}
CASES = {
    "gkd_forward_kl": {"kind": "gkd", "beta": 0.0},
    "gkd_jsd": {"kind": "gkd", "beta": 0.5},
    "gkd_reverse_kl": {"kind": "gkd", "beta": 1.0},
    "gkd_on_policy": {"kind": "gkd", "lmbda": 1.0},
    "distillation": {"kind": "distillation"},
    "distillation_jsd": {"kind": "distillation", "beta": 0.3, "temperature": 0.7},
    "gold_jsd": {"kind": "gold", "beta": 0.3},
    "gold_uld": ACROSS,
    "gold_hybrid": HYBRID | {"lmbda": 1.0},
    "gold_hybrid_bayesian": HYBRID | {"uld_token_merge_strategy": "bayesian"},
}
# What is not run with every number of steps of accumulation, for time.
FEW = {"gkd_reverse_kl": [4], "distillation_jsd": [2], "gold_hybrid_bayesian": [1]}
RUNS = [(name, steps) for name in CASES for steps in FEW.get(name, [1, 2, 4])]


def in_single(case: dict) -> dict:
    return {k: v for k, v in case.items() if k != "dtype"}


@cache
def unpatched(name: str, accumulation: int) -> trl_runs.Run:
    return trl_runs.train(accumulation=accumulation, **CASES[name])


def assert_same(ours: trl_runs.Run, theirs: trl_runs.Run) -> None:
    assert len(ours.logs) == len(theirs.logs) == 2
    for actual, expected in zip(ours.logs, theirs.logs, strict=True):
        assert actual.keys() == expected.keys()
        assert expected["loss"] > 0.01
        assert actual == pytest.approx(expected, rel=2e-5, abs=1e-6)
    for name, weight in theirs.weights.items():
        torch.testing.assert_close(ours.weights[name], weight, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize(("name", "accumulation"), RUNS)
def test_patched_training_is_the_same(name, accumulation, monkeypatch):
    called = []
    for function in ("divergence", "sorted_l1"):
        original = getattr(kd, function)
        monkeypatch.setattr(kd, function, lambda *a, f=original, **k: called.append(1) or f(*a, **k))
    theirs = unpatched(name, accumulation)
    assert not called
    with kd_trl.patched():
        assert_same(trl_runs.train(accumulation=accumulation, **CASES[name]), theirs)
    assert len(called) >= 2 * accumulation


@pytest.mark.parametrize("case", [ACROSS, HYBRID], ids=["uld", "hybrid"])
def test_losses_across_tokenizers_in_float32(case):
    case = in_single(case)
    theirs = trl_runs.train(**case)
    with kd_trl.patched():
        ours = trl_runs.train(**case)
    losses = [[log["loss"] for log in run.logs] for run in (ours, theirs)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.parametrize(
    ("name", "accumulation"),
    [("gkd_forward_kl", 2), ("gkd_jsd", 1), ("gkd_reverse_kl", 4), ("gkd_on_policy", 2), ("gold_jsd", 2),
     ("gold_uld", 1)],
)  # fmt: skip
def test_training_from_hidden_states_is_the_same(name, accumulation):
    ours = trl_runs.train(accumulation=accumulation, mixin=kd_trl.FusedLossMixin, **CASES[name])
    assert_same(ours, unpatched(name, accumulation))


class TestMixin:
    def test_no_logits(self):
        trainer = trl_runs.make("gkd", mixin=kd_trl.FusedLossMixin)
        widths = []
        head = trainer.model.get_output_embeddings()
        head.register_forward_hook(lambda module, args, output: widths.append(output.shape[-1]))
        trainer.train()
        assert widths
        assert max(widths) < 10  # the probe of `kd.hidden_states`

    def test_evaluation(self):
        results = []
        for mixin in (None, kd_trl.FusedLossMixin):
            trainer = trl_runs.make("gkd", mixin=mixin)
            batch = next(iter(trainer.get_train_dataloader()))
            loss, logits, _ = trainer.prediction_step(trainer.model, dict(batch), prediction_loss_only=True)
            assert logits is None
            results.append((loss, trainer.prediction_step(trainer.model, dict(batch), prediction_loss_only=False)))
        torch.testing.assert_close(results[0][0], results[1][0])
        torch.testing.assert_close(results[0][1][1], results[1][1][1])  # asked for logits, it gives logits

    @pytest.mark.parametrize("side", ["model", "teacher_model"])
    def test_refuses_a_wrapped_head(self, side, monkeypatch):
        class Wrapped(nn.Module):
            def __init__(self, layer):
                super().__init__()
                self.base_layer, self.weight = layer, layer.weight

        initialise = gkd_trainer.GKDTrainer.__init__

        def with_wrapped_head(self, *args, **kwargs):
            initialise(self, *args, **kwargs)
            model = getattr(self, side)
            model.set_output_embeddings(Wrapped(model.get_output_embeddings()))

        monkeypatch.setattr(gkd_trainer.GKDTrainer, "__init__", with_wrapped_head)
        with pytest.raises(ValueError, match="wrapped by PEFT"):
            trl_runs.make("gkd", mixin=kd_trl.FusedLossMixin)

    def test_refuses_a_quantised_head(self, monkeypatch):
        initialise = gkd_trainer.GKDTrainer.__init__

        def with_quantised_head(self, *args, **kwargs):
            initialise(self, *args, **kwargs)
            head = self.teacher_model.get_output_embeddings()
            head.weight = nn.Parameter(torch.zeros(head.weight.shape, dtype=torch.int8), requires_grad=False)

        monkeypatch.setattr(gkd_trainer.GKDTrainer, "__init__", with_quantised_head)
        with pytest.raises(ValueError, match="quantised"):
            trl_runs.make("gkd", mixin=kd_trl.FusedLossMixin)


def in_place() -> dict[str, object]:
    """The functions that are patched, as they are now."""
    return {
        "distillation": distillation_trainer._chunked_divergence_loss,
        "gkd": gkd_trainer.GKDTrainer.generalized_jsd_loss,
        "gold": gold_trainer.GOLDTrainer.generalized_jsd_loss,
        "uld": gold_trainer.ULDLoss._compute_distillation_loss,
    }


ORIGINAL = in_place()


def changed() -> set[str]:
    return {name for name, function in in_place().items() if function is not ORIGINAL[name]}


class TestPatching:
    @pytest.fixture(autouse=True)
    def _clean(self):
        assert not changed()
        yield
        kd_trl.unpatch()
        assert not changed()

    def test_patch_and_unpatch(self):
        kd_trl.patch()
        first = in_place()
        assert changed() == set(ORIGINAL)
        kd_trl.patch()
        assert in_place() == first
        kd_trl.unpatch()
        assert not changed()
        kd_trl.unpatch()

    def test_choice(self):
        kd_trl.patch(gold=False, distillation=False)
        assert changed() == {"gkd"}
        kd_trl.patch(gkd=False, distillation=False)
        assert changed() == {"gkd", "gold", "uld"}

    def test_contexts_nest(self):
        with kd_trl.patched(gkd=False):
            with kd_trl.patched():
                assert changed() == set(ORIGINAL)
            assert changed() == {"distillation", "gold", "uld"}
        assert not changed()

    def test_a_context_leaves_what_was_patched(self):
        kd_trl.patch(gold=False)
        with pytest.raises(KeyError), kd_trl.patched():
            raise KeyError
        assert changed() == {"distillation", "gkd"}

    def test_logs(self, caplog):
        with caplog.at_level(logging.INFO, "kd_kernels"), kd_trl.patched(gold=False, gkd=False):
            pass
        assert [record.getMessage() for record in caplog.records] == [
            "TRL's distillation losses are those of kd_kernels now", "TRL's distillation losses are its own again",
        ]  # fmt: skip

    def test_static_methods_stay_static(self):
        static = vars(gkd_trainer.GKDTrainer)["generalized_jsd_loss"]
        with kd_trl.patched():
            assert isinstance(vars(gkd_trainer.GKDTrainer)["generalized_jsd_loss"], staticmethod)
        assert vars(gkd_trainer.GKDTrainer)["generalized_jsd_loss"] is static

    @pytest.mark.parametrize(
        ("owner", "name", "trainer"),
        [
            (distillation_trainer, "_chunked_divergence_loss", "distillation"),
            (gkd_trainer.GKDTrainer, "generalized_jsd_loss", "gkd"),
            (gold_trainer.ULDLoss, "_align_by_byte_offsets", "gold"),
        ],
        ids=lambda x: x if isinstance(x, str) else "",
    )
    def test_a_missing_name(self, owner, name, trainer, monkeypatch):
        with monkeypatch.context() as patch:
            patch.delattr(owner, name)
            with pytest.raises(RuntimeError, match=rf"trl \d+\.\d+.*{name} is missing.*Nothing has been patched"):
                kd_trl.patch()
            others = {key: key != trainer for key in TARGETS}
            kd_trl.patch(**others)  # the others can be had
            kd_trl.unpatch()
        assert not changed()

    def test_other_parameters(self, monkeypatch):
        with monkeypatch.context() as patch:
            patch.setattr(gkd_trainer.GKDTrainer, "generalized_jsd_loss", staticmethod(lambda student, teacher: 0))
            with pytest.raises(RuntimeError, match=r"takes \(student, teacher\) instead of \(student_logits, .*beta"):
                kd_trl.patch(distillation=False, gold=False)

    def test_a_missing_module(self, monkeypatch):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, "trl.trainer.distillation_trainer", None)
            with pytest.raises(RuntimeError, match=r"trl \d+.*: trl\.trainer\.distillation_trainer is missing"):
                kd_trl.patch()

    def test_a_package_that_is_not_there(self):
        with pytest.raises(ModuleNotFoundError, match="no_such_package"):
            prepare("no_such_package", [Target("no_such_package.module", "function", lambda original: original)])

    def test_all_that_is_missing_is_named(self, monkeypatch):
        absent = [
            (gold_trainer.ULDLoss, "_align_by_byte_offsets"),
            (gold_trainer.ULDLoss, "_compute_distillation_loss"),
            (gkd_trainer.GKDTrainer, "generalized_jsd_loss"),
        ]
        with monkeypatch.context() as patch:
            for owner, name in absent:
                patch.delattr(owner, name)
            with pytest.raises(RuntimeError) as caught:
                kd_trl.patch()
        for owner, name in absent:
            assert f"{owner.__name__}.{name} is missing" in str(caught.value)


def compare(ours, theirs, *leaves, rtol=1e-9, atol=1e-12):
    """Values and gradients of two functions of the same leaves."""
    results = []
    for function in (ours, theirs):
        outputs = function()
        loss = outputs[0] if isinstance(outputs, tuple) else outputs
        results.append((outputs, torch.autograd.grad(loss.sum(), leaves)))
    torch.testing.assert_close(*results, rtol=rtol, atol=atol)


@pytest.fixture(scope="module")
def patched_functions():
    with kd_trl.patched():
        yield in_place()


REDUCTIONS = [("batchmean", None), ("sum", None), ("mean", None), ("none", None), ("batchmean", 7)]


@pytest.mark.parametrize("beta", [0, 0.3, 1.0])
@pytest.mark.parametrize(("reduction", "items"), REDUCTIONS)
@pytest.mark.parametrize("masked", [False, True], ids=["all", "masked"])
@pytest.mark.parametrize("trainer", ["gkd", "gold"])
def test_jsd(trainer, masked, reduction, items, beta, patched_functions):
    student = torch.randn(2, 5, 13, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(2, 5, 13, dtype=torch.float64)
    labels = torch.tensor([[1, 2, -100, 3, 4], [-100, -100, 5, 6, -100]]) if masked else None
    compare(
        *(
            lambda f=f: f(
                student, teacher, labels, beta=beta, temperature=1.7, reduction=reduction, num_items_in_batch=items
            )
            for f in (patched_functions[trainer], ORIGINAL[trainer])
        ),
        student,
    )


@pytest.mark.parametrize("beta", [0, 0.3, 1.0])
@pytest.mark.parametrize(("reduction", "items"), REDUCTIONS)
@pytest.mark.parametrize("masked", [False, True], ids=["all", "masked"])
def test_jsd_of_probabilities(masked, reduction, items, beta, patched_functions):
    student = (torch.rand(6, 13, dtype=torch.float64) / 13).requires_grad_()
    teacher = torch.rand(6, 13, dtype=torch.float64) / 20
    with torch.no_grad():
        student[1, 2] = teacher[2, 5] = 1e-12  # below the bound that TRL puts
    labels = torch.tensor([1, 2, -100, 3, 4, -100]) if masked else None
    compare(
        *(
            lambda f=f: f(
                student, teacher, labels, beta=beta, reduction=reduction, num_items_in_batch=items,
                logits_are_probs=True,
            )
            for f in (patched_functions["gold"], ORIGINAL["gold"])
        ),
        student,
        rtol=1e-7,
    )  # fmt: skip


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("items", [None, 5, torch.tensor(5)], ids=str)
@pytest.mark.parametrize("plain", [True, False], ids=["plain", "transformed"])
def test_chunked_divergence(plain, items, beta, patched_functions):
    """TRL's own computes in float32."""
    leaves = [torch.randn(2, 4, 8), torch.randn(30, 8) / 3] + ([] if plain else [torch.randn(30)])
    leaves = [x.requires_grad_() for x in leaves]
    hidden, weight = torch.randn(2, 4, 12), torch.randn(30, 12) / 3
    mask = torch.tensor([[1, 1, 0, 1], [0, 1, 1, 0]])
    options = {"num_items_in_batch": items} if plain else {
        "student_lm_head_bias": leaves[2], "teacher_lm_head_bias": torch.randn(30), "student_logit_scale": 0.7,
        "teacher_logit_scale": 1.3, "student_final_logit_softcapping": 5.0, "teacher_final_logit_softcapping": 4.0,
        "temperature": 1.5, "num_items_in_batch": items,
    }  # fmt: skip
    ours, theirs = (
        lambda f=f: f(leaves[0], hidden, leaves[1], weight, mask, beta, **options)
        for f in (patched_functions["distillation"], ORIGINAL["distillation"])
    )
    compare(ours, theirs, *leaves, rtol=2e-5, atol=1e-6)


def test_chunked_divergence_without_tokens(patched_functions):
    hidden, weight = torch.randn(1, 3, 8, requires_grad=True), torch.randn(30, 8, requires_grad=True)
    loss, entropy, count = patched_functions["distillation"](
        hidden, hidden.detach(), weight, weight.detach(), torch.zeros(1, 3), 0.5
    )
    loss.backward()
    assert (loss, entropy, count) == (0, 0, 0)
    assert not hidden.grad.any()


def uld_loss(**options):
    """A loss between vocabularies of 12 and 10 tokens, 6 of which are the same."""
    config = SimpleNamespace(
        uld_crossentropy_weight=0.0, uld_distillation_weight=1.3, uld_student_temperature=1.2,
        uld_teacher_temperature=0.8, uld_skip_student_eos=True, uld_skip_teacher_eos=False, use_extended_uld=True,
        uld_token_merge_strategy="observed", uld_use_hybrid_loss=False, uld_hybrid_matched_weight=None,
        uld_hybrid_unmatched_weight=None, beta=0.4,
    )  # fmt: skip
    vars(config).update(options)
    student = SimpleNamespace(get_vocab=lambda: {f"t{i}": i for i in range(12)})
    teacher = SimpleNamespace(get_vocab=lambda: {f"t{(5 * i) % 17}": i for i in range(10)})
    return gold_trainer.ULDLoss(config, student, teacher)


def uld_batch():
    """Three sequences, in which tokens end together at some bytes; the last has no answer on one side."""
    generator = torch.Generator().manual_seed(5)
    student = torch.randn(3, 7, 12, dtype=torch.float64, generator=generator, requires_grad=True)
    teacher = torch.randn(3, 8, 10, dtype=torch.float64, generator=generator)
    labels = [torch.full((3, n), -100) for n in (7, 8)]
    labels[0][0, 2:7], labels[1][0, 3:8] = 1, 1
    labels[0][1, 0:4], labels[1][1, 0:5] = 1, 1
    labels[0][2, 3:5] = 1
    ids = [torch.randint(0, n, (3, t), generator=generator) for n, t in ((12, 7), (10, 8))]
    ends = [[[0, 0, 2, 3, 5, 9, 9], [3, 4, 6, 6, 0, 0, 0], [0, 0, 0, 1, 2, 0, 0]],
            [[0, 0, 0, 1, 2, 5, 7, 9], [1, 3, 4, 6, 6, 0, 0, 0], [0] * 8]]  # fmt: skip
    offsets = [torch.stack([torch.zeros(3, len(e[0]), dtype=torch.long), torch.tensor(e)], -1) for e in ends]
    return student, (teacher, *labels, *ids, *offsets)


ULD = {
    "extended": {},
    "positions": {"use_extended_uld": False},
    "positions_bayesian": {"use_extended_uld": False, "uld_token_merge_strategy": "bayesian"},
    "bayesian": {"uld_token_merge_strategy": "bayesian"},
    "all_tokens": {"uld_skip_student_eos": False, "uld_skip_teacher_eos": True},
    "hybrid": {"uld_use_hybrid_loss": True},
    "hybrid_bayesian": {"uld_use_hybrid_loss": True, "uld_token_merge_strategy": "bayesian", "beta": 1.0},
    "hybrid_weights": {
        "uld_use_hybrid_loss": True, "uld_hybrid_matched_weight": 0.7, "uld_hybrid_unmatched_weight": 0.2, "beta": 0.0
    },
}  # fmt: skip


@pytest.mark.parametrize("options", ULD.values(), ids=ULD)
def test_uld(options, patched_functions):
    student, rest = uld_batch()
    loss = uld_loss(**options)
    compare(
        *(lambda f=f: f(loss, student, *rest) for f in (patched_functions["uld"], ORIGINAL["uld"])), student, rtol=1e-7
    )
    if loss.use_hybrid_loss:
        logged = loss.last_matched_loss, loss.last_unmatched_loss
        ORIGINAL["uld"](loss, student, *rest)
        torch.testing.assert_close(logged, (loss.last_matched_loss, loss.last_unmatched_loss), rtol=1e-7, atol=1e-12)
        assert all(logged)


def test_uld_without_answers(patched_functions):
    student, (teacher, student_labels, teacher_labels, *rest) = uld_batch()
    labels = (torch.full_like(x, -100) for x in (student_labels, teacher_labels))
    loss = patched_functions["uld"](uld_loss(), student, teacher, *labels, *rest)
    loss.backward()
    assert loss == 0
    assert not student.grad.any()


def test_uld_wants_byte_offsets(patched_functions):
    student, rest = uld_batch()
    with pytest.raises(ValueError, match="Byte offsets are required"):
        patched_functions["uld"](uld_loss(), student, *rest[:-2])


# Peak memory of loss and gradients, in a process of its own: a list of [case, way] -> a list of bytes.
MEASURE = """
import json, sys
sys.path.insert(0, sys.argv[1])
import torch, trl_runs
from kd_kernels.benchmark.memory import extra_peak_bytes
import kd_kernels.integrations.trl as kd_trl
from kd_kernels.integrations.trl import uld

uld.CHUNK_ENTRIES >>= 3  # as many chunks of this small vocabulary as a large one has

def measure(case, way):
    trainer = trl_runs.make(mixin=kd_trl.FusedLossMixin if way == "mixin" else None, **case)
    batch = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    def call():
        trainer.model.zero_grad(set_to_none=True)
        trainer.compute_loss(trainer.model, dict(batch), num_items_in_batch=torch.tensor(100)).backward()
    call()
    return extra_peak_bytes(call, "cpu")

torch.set_num_threads(1)
peaks = []
for case, way in json.loads(sys.argv[2]):
    if way == "patched":
        kd_trl.patch()
    peaks.append(measure(case, way))
    kd_trl.unpatch()
print(json.dumps(peaks))
"""
# Share of TRL's peak that ours may have, at most.
LARGE = {"vocabulary": 10_000, "per_device_train_batch_size": 4, "length": 6}
PEAKS = [
    (CASES["gkd_jsd"], "patched", 0.4),
    (CASES["gkd_jsd"], "mixin", 0.1),
    (CASES["distillation"] | {"max_completion_length": 32}, "patched", 0.3),
    (in_single(CASES["gold_uld"]), "patched", 0.95),
    (in_single(CASES["gold_hybrid_bayesian"]), "patched", 0.95),
]


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads the peak resident set from /proc")
def test_peak_memory_is_lower():
    wanted = [(case | LARGE, way) for case, way, _ in PEAKS]
    wanted += [(case, "trl") for case in {json.dumps(case): case for case, _ in wanted}.values()]
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", MEASURE, str(Path(__file__).parent), json.dumps(wanted)],
        capture_output=True, text=True, check=False,
        env=os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"},  # what is freed leaves the process
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-2000:]
    peaks = json.loads(run.stdout.splitlines()[-1])
    if None in peaks:
        pytest.skip("this kernel does not let the peak be reset")
    of_trl = {json.dumps(case): peak for (case, way), peak in zip(wanted, peaks, strict=True) if way == "trl"}
    for (case, way), ours, (*_, share) in zip(wanted, peaks, PEAKS, strict=False):
        assert ours <= share * of_trl[json.dumps(case)], (case, way, ours, of_trl)
