"""`kd-kernels distill` from its command line to its files."""

import json
import math
import subprocess
import sys

import pytest
import torch
from tiny import CHAT_TEMPLATE, metrics, result, save_model, sentence, tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

import kd_kernels
from kd_kernels.cli import main

STEP = {"step", "loss", "divergence", "student_entropy", "teacher_entropy", "lr", "grad_norm", "tokens"}
EVALUATION = {"tokens", "cross_entropy", "forward_kl", "reverse_kl", "teacher_cross_entropy"}


def only_line(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line of complaint."""
    (line,) = capsys.readouterr().err.splitlines()
    return line.removeprefix("kd-kernels: ")


def test_a_run_leaves_a_student_metrics_and_a_result_that_improved(run, tmp_path, capsys):
    assert run(steps=40, eval_every=20) == 0
    out = tmp_path / "run"
    records = metrics(out)
    steps = [r for r in records if "loss" in r]
    assert [r["step"] for r in steps] == list(range(1, 41))
    assert all(set(r) == STEP for r in steps)
    assert [(r["step"], set(r["eval"])) for r in records if "eval" in r] == [(s, EVALUATION) for s in (0, 20, 40)]
    measured = json.loads((out / "metrics.jsonl").read_text().splitlines()[1])
    assert measured["tokens_per_s"] > 0
    assert 50 < measured["peak_rss_mb"] < 100_000

    found = result(out)
    assert found["improved"]["forward_kl"]
    assert found["after"]["forward_kl"] < 0.8 * found["before"]["forward_kl"]
    assert found["after"]["perplexity"] == pytest.approx(math.exp(found["after"]["cross_entropy"]))
    printed = capsys.readouterr().out
    assert "The student improved on held-out text" in printed
    assert f"{found['after']['forward_kl']:.4g}" in printed

    config = json.loads((out / "config.json").read_text())
    assert config["settings"]["steps"] == 40
    assert config["settings"]["device"] in ("cpu", "cuda")
    assert config["environment"]["torch"] == torch.__version__


def test_the_student_loads_and_is_the_one_that_was_evaluated(run, tmp_path, teacher):
    assert run(kind="reverse_kl") == 0
    student = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "student")
    words = AutoTokenizer.from_pretrained(tmp_path / "run" / "student")
    ids = words(sentence(20, 0), return_tensors="pt").input_ids
    reference = AutoModelForCausalLM.from_pretrained(teacher)
    assert ids.max() > 0
    with torch.no_grad():
        assert kd_kernels.divergence(student(ids).logits, reference(ids).logits) > 0
    assert words.eos_token == "<eos>"


def test_a_text_file_is_one_document_whose_end_is_held_out(run, tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("\n".join(sentence(20, seed) for seed in range(20)))
    assert run(data=path, eval_blocks=100) == 0
    assert result(tmp_path / "run")["held_out_tokens"] == 40  # the last 2 of 20 lines, and EOS, less the first token


def test_chats_go_through_the_template(run, tmp_path, capsys):
    words = tokenizer(chat_template=CHAT_TEMPLATE)
    teacher = save_model(tmp_path / "t", seed=1, tokens=words)
    student = save_model(tmp_path / "s", seed=2, tokens=words)
    path = tmp_path / "chats.jsonl"
    chat = [{"role": "user", "content": sentence(30, 0)}, {"role": "assistant", "content": sentence(30, 1)}]
    path.write_text("".join(json.dumps({"messages": chat[: 1 + i % 2], "id": i}) + "\n" for i in range(8)))
    assert run(data=path, teacher=teacher, student=student) == 0
    capsys.readouterr()
    assert run(data=path, out=tmp_path / "other") == 2
    assert only_line(capsys) == (
        f"{path}, line 1: 'messages' need a tokenizer with a chat template; the teacher's has none"
    )


@pytest.mark.parametrize("larger", ["teacher", "student"])
def test_vocabularies_may_be_padded_to_different_sizes(run, tmp_path, larger):
    padded = save_model(tmp_path / "padded", seed=3, vocabulary=320)
    assert run(**{larger: padded}) == 0
    assert result(tmp_path / "run")["improved"]["forward_kl"]
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "student").vocab_size in (300, 320)


def test_different_tokenizers_are_refused(run, tmp_path, capsys):
    other = save_model(tmp_path / "other", seed=3, tokens=tokenizer([f"v{i}" for i in range(250)]))
    assert run(student=other) == 2
    assert "must have the same tokenizer; of their 251 and 281 tokens 530 differ" in only_line(capsys)
    assert not (tmp_path / "run").exists()


def test_a_vocabulary_smaller_than_the_tokenizer_is_refused(run, tmp_path, capsys):
    small = save_model(tmp_path / "small", seed=3, vocabulary=200)
    assert run(student=small) == 2
    assert only_line(capsys) == "the student's vocabulary must have the 281 entries of its tokenizer, got 200"


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"data": "/nowhere.txt"}, "[Errno 2] No such file or directory: '/nowhere.txt'"),
        ({"teacher": "/nowhere"}, "/nowhere is not a model directory"),
        ({"student": None}, "--teacher and --student go together: give both, or neither for the built-in pair"),
        ({"steps": 0}, "--steps must be at least 1, got 0"),
        ({"lr": 0}, "--lr must be above 0, got 0.0"),
        ({"accumulate": 3}, "--accumulate 3 must divide --batch-size 4"),
        ({"kind": "jsd", "beta": 2}, "JSD: beta must be between 0 and 1, got 2.0"),
        ({"temperature": 0}, "temperature must be between 0.0001 and 1e+06, got 0.0"),
        ({"device": "nothing"}, "Expected one of cpu"),
    ],
)  # fmt: skip
def test_mistakes_get_one_line_and_status_2(run, tmp_path, capsys, changes, complaint):
    assert run(**changes) == 2
    assert complaint in only_line(capsys)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ('{"text": 3}', 'expected {"text": "..."} or {"messages": [...]}'),
        ('["text"]', 'expected {"text": "..."} or {"messages": [...]}'),
        ("{text}", "Expecting property name"),
    ],
)
def test_a_bad_line_of_data_is_named(run, tmp_path, capsys, line, complaint):
    path = tmp_path / "bad.jsonl"
    path.write_text('{"text": "w1 w2"}\n\n' + line + "\n")
    assert run(data=path) == 2
    assert f"{path}, line 3: {complaint}" in only_line(capsys)


def test_a_parameter_reaches_its_kind(run, tmp_path):
    assert run(kind="jsd", out=tmp_path / "default") == 0
    assert run(kind="jsd", beta=0.5, out=tmp_path / "same") == 0
    assert run(kind="jsd", beta=0.1, out=tmp_path / "other") == 0
    default, same, other = (metrics(tmp_path / name)[1]["loss"] for name in ("default", "same", "other"))
    assert default == same != other


def test_cross_entropy_mixes_in(run, tmp_path):
    assert run(ce_weight=0.25) == 0
    for record in metrics(tmp_path / "run")[1:-1]:
        assert record["loss"] == pytest.approx(0.75 * record["divergence"] + 0.25 * record["cross_entropy"], rel=1e-5)


def test_the_options_of_precision_run(run, tmp_path):
    assert run(dtype="bfloat16", bf16=True, temperature=2.0, scale_t2=True) == 0
    assert result(tmp_path / "run")["improved"]["forward_kl"]


def test_a_loss_that_is_not_finite_ends_the_run(run, capsys):
    assert run(lr=1e30, steps=6, clip=1e30) == 2
    assert "a lower --lr may help" in capsys.readouterr().err


def test_a_folder_in_use_is_refused_and_overwritten_on_request(run, tmp_path, capsys):
    out = tmp_path / "run"
    assert run() == 0
    (out / "notes.txt").write_text("mine")
    capsys.readouterr()
    before = metrics(out)
    assert run(seed=8) == 2
    assert only_line(capsys) == (
        f"{out} is not empty: pass --resume to go on with its run, --overwrite, or another --out"
    )
    assert metrics(out) == before
    assert run(seed=8, overwrite=True) == 0
    assert metrics(out) != before
    assert (out / "notes.txt").read_text() == "mine"


def test_resume_refuses_a_folder_that_holds_no_run(run, tmp_path, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    assert run(resume=True) == 2
    assert "has no run to resume and is not empty" in only_line(capsys)


def test_the_package_and_the_help_import_nothing_heavy():
    check = (
        "import sys, kd_kernels\n"
        "from kd_kernels.cli import main\n"
        "try: main(['distill', '--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'transformers', 'tokenizers', 'safetensors', 'matplotlib'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", check], check=True, capture_output=True)


def test_a_missing_extra_is_named():
    check = (
        "import sys; sys.modules['transformers'] = None\nfrom kd_kernels.cli import main; sys.exit(main(['distill']))"
    )
    process = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True)
    assert process.returncode == 2
    assert process.stderr == "kd-kernels: transformers is not installed: pip install 'kd-kernels[hf]'\n"


def test_a_command_is_required(capsys):
    with pytest.raises(SystemExit, match="2"):
        main([])
    assert "the following arguments are required: COMMAND" in capsys.readouterr().err
