"""What a run says in the end."""

import pytest

from kd_kernels.distillation import report


def evaluation(cross_entropy: float, forward_kl: float) -> dict[str, float]:
    return {
        "tokens": 64, "cross_entropy": cross_entropy, "forward_kl": forward_kl, "reverse_kl": 1.0,
        "teacher_cross_entropy": 2.0,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("after", "verdict"),
    [
        ((3.0, 0.5), "The student improved on held-out text: cross-entropy 4 -> 3, KL to the teacher 1 -> 0.5."),
        ((4.0, 1.0), "The student did not improve on held-out text: cross-entropy 4 -> 4, KL to the teacher 1 -> 1."),
        (
            (5.0, 0.5),
            "The student improved on held-out text in one respect: KL to the teacher 1 -> 0.5; "
            "but not in the other: cross-entropy 4 -> 5.",
        ),
    ],
)
def test_the_verdict_is_honest(after, verdict):
    assert report.summary(report.result(evaluation(4.0, 1.0), evaluation(*after))).endswith("\n\n" + verdict)


def test_the_table():
    table = report.summary(report.result(evaluation(12.0, 7.5), evaluation(3.0, 0.25))).splitlines()
    assert [line.split()[-3:] for line in table[:3]] == [
        ["before", "after", "teacher"],
        ["12", "3", "2"],
        ["162,755", "20.09", "7.389"],
    ]
    assert [line.split()[-2:] for line in table[3:5]] == [["7.5", "0.25"], ["1", "1"]]


def test_the_table_across_tokenizers():
    """In units of the text, as tokens differ; parts of the loss below it."""

    def found(cross_entropy: float, bits: float, loss: float) -> dict[str, float]:
        parts = {"multilevel_ot": loss, "had": loss / 2, "sl": 1.0, "sd": 2.0}
        of_teacher = {"teacher_cross_entropy": 2.0, "teacher_bits_per_byte": 1.5}
        return {"tokens": 64, "cross_entropy": cross_entropy, "bits_per_byte": bits, **parts, **of_teacher}

    result = report.result(found(8.0, 4.0, 0.75), found(4.0, 2.0, 0.5))
    assert result["improved"] == {"bits_per_byte": True, "multilevel_ot": True}
    table = report.summary(result).splitlines()
    assert table[3].split()[-3:] == ["4", "2", "1.5"]
    assert [line.split()[-2:] for line in table[4:8]] == [["0.75", "0.5"], ["0.375", "0.25"], ["1", "1"], ["2", "2"]]
    assert table[-1] == "The student improved on held-out text: bits per byte 4 -> 2, MultiLevelOT 0.75 -> 0.5."
