"""`compute_loss_func` of transformers' trainer, against a loss written out."""

import copy
import os

import pytest
import torch

os.environ["HF_HUB_OFFLINE"] = "1"
pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from torch.nn import functional as F  # noqa: N812
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments, set_seed

import kd_kernels as kd
from kd_kernels.integrations.transformers import DistillationLoss

pytestmark = pytest.mark.filterwarnings("ignore")

VOCABULARY = 60


def model(seed: int, width: int, **config) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    settings = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=width, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        initializer_range=0.5, **config,
    )  # fmt: skip
    return LlamaForCausalLM(settings).double()


@pytest.fixture(scope="module")
def models():
    return model(0, 16), model(1, 24)


@pytest.fixture(scope="module")
def texts():
    """Of different lengths, with different numbers of tokens that count."""
    generator = torch.Generator().manual_seed(3)
    rows = []
    for length, masked in ((5, 2), (9, 1), (7, 0), (4, 2), (10, 6), (6, 0), (8, 3), (3, 2)):
        ids = torch.randint(0, VOCABULARY, (length,), generator=generator)
        rows.append({"input_ids": ids, "labels": ids.clone()})
        rows[-1]["labels"][:masked] = -100
    return rows


def collate(rows):
    width = max(len(row["input_ids"]) for row in rows)
    pad = lambda x, value: F.pad(x, (0, width - len(x)), value=value)  # noqa: E731
    return {
        "input_ids": torch.stack([pad(row["input_ids"], 0) for row in rows]),
        "attention_mask": torch.stack([pad(torch.ones_like(row["input_ids"]), 0) for row in rows]),
        "labels": torch.stack([pad(row["labels"], -100) for row in rows]),
    }


def trainer(folder, student, texts, batch: int, accumulation: int, steps: int, cls=Trainer, **options):
    set_seed(0)
    arguments = TrainingArguments(
        output_dir=str(folder), use_cpu=True, report_to="none", save_strategy="no", logging_steps=1, disable_tqdm=True,
        max_steps=steps, per_device_train_batch_size=batch, gradient_accumulation_steps=accumulation, optim="sgd",
        learning_rate=0.1, lr_scheduler_type="constant", max_grad_norm=0.0, train_sampling_strategy="sequential",
    )  # fmt: skip
    return cls(student, arguments, train_dataset=texts, data_collator=collate, **options)


class ByHand(Trainer):
    """Forward KL of the tokens that count at temperature 2, over their number in the whole batch."""

    teacher: LlamaForCausalLM

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        labels = inputs.pop("labels")
        log_q = (model(**inputs).logits[:, :-1] / 2).log_softmax(-1)
        with torch.no_grad():
            log_p = (self.teacher(**inputs).logits[:, :-1] / 2).log_softmax(-1)
        rows = (log_p.exp() * (log_p - log_q)).sum(-1)
        counted = labels[:, 1:] != -100
        return rows[counted].sum() / num_items_in_batch


def losses(run: Trainer) -> list[float]:
    return [log["loss"] for log in run.state.log_history if "loss" in log]


def assert_same_weights(ours, theirs):
    for (name, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10, msg=name)


@pytest.mark.parametrize("accumulation", [1, 2, 4])
@pytest.mark.parametrize("hidden", [False, True], ids=["logits", "hidden_states"])
def test_training(accumulation, hidden, models, texts, tmp_path):
    ours, theirs = (copy.deepcopy(models[0]) for _ in range(2))
    loss = DistillationLoss(ours, models[1], "forward_kl", temperature=2.0)
    run = trainer(tmp_path, ours, texts, 2, accumulation, 2, compute_loss_func=loss)
    if hidden:
        with kd.hidden_states(ours):
            run.train()
    else:
        run.train()
    reference = trainer(tmp_path, theirs, texts, 2, accumulation, 2, ByHand)
    reference.teacher = models[1]
    reference.train()
    assert losses(run) == pytest.approx(losses(reference), rel=1e-6)
    assert_same_weights(ours, theirs)
    assert not any(a.equal(b) for a, b in zip(ours.parameters(), models[0].parameters(), strict=True))


@pytest.mark.parametrize("accumulation", [2, 4])
def test_accumulated_gradients_are_those_of_the_whole_batch(accumulation, models, texts, tmp_path):
    students = []
    for steps in (1, accumulation):
        student = copy.deepcopy(models[0])
        loss = DistillationLoss(student, models[1], "jsd", beta=0.3)
        trainer(tmp_path, student, texts, len(texts) // steps, steps, 1, compute_loss_func=loss).train()
        students.append(student)
    assert_same_weights(*students)


def test_evaluation(models, texts, tmp_path):
    student = copy.deepcopy(models[0])
    loss = DistillationLoss(student, models[1], "tvd")
    run = trainer(tmp_path, student, texts, 2, 1, 1, compute_loss_func=loss)
    batch = collate(texts)
    labels = batch.pop("labels")
    logits = [m(**batch).logits[:, :-1] for m in (student, models[1])]
    expected = kd.divergence(*logits, "tvd", labels=labels[:, 1:])
    run.args.per_device_eval_batch_size = len(texts)
    assert run.evaluate(texts)["eval_loss"] == pytest.approx(expected.item(), rel=1e-6)


def test_vocabularies_that_differ(texts):
    student, teacher = model(0, 16), model(1, 24)
    teacher.resize_token_embeddings(VOCABULARY + 4)
    batch = collate(texts)
    labels = batch.pop("labels")
    loss = DistillationLoss(student, teacher)
    outputs = student(**batch)
    with pytest.raises(ValueError, match="vocabularies of 60 and 64"):
        loss(outputs, labels)
    loss.remove()
    assert DistillationLoss(student, teacher, vocab="common")(student(**batch), labels) > 0


def test_what_it_needs(models, texts):
    student = copy.deepcopy(models[0])
    loss = DistillationLoss(student, models[1])
    batch = collate(texts)
    labels = batch.pop("labels")
    outputs = student(**batch)
    with pytest.raises(ValueError, match="labels must say which tokens count"):
        loss(outputs, None)
    loss(outputs, labels)
    with pytest.raises(RuntimeError, match="no forward pass"):
        loss(outputs, labels)
    loss.remove()
    student(**batch)
    with pytest.raises(RuntimeError, match="no forward pass"):
        loss(outputs, labels)


def test_a_batch_without_labels(models, texts):
    student = copy.deepcopy(models[0])
    loss = DistillationLoss(student, models[1])
    batch = collate(texts)
    labels = torch.full_like(batch.pop("labels"), -100)
    value = loss(student(**batch), labels, num_items_in_batch=torch.tensor(0))
    value.backward()
    assert value == 0
    assert not any(x.grad.any() for x in student.parameters())
