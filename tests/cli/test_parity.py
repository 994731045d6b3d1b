from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from lightning_opd.cli.parity.bootstrap import mean_interval, paired_intervals, resampled_means
from lightning_opd.cli.parity.curves import read_curves
from lightning_opd.cli.parity.report import compare
from lightning_opd.cli.parity.scores import read_models
from tests.cli.conftest import Cli

Row = dict[str, object]
Save = Callable[[str, Sequence[Row]], Path]


def rows(
    domain: str, outcomes: Sequence[float], split: str = "test", mode: str = "greedy", teacher: str | None = None
) -> list[Row]:
    """Return one row per prompt, in the layout of `scores.json`."""
    return [
        {
            "key": f"{domain}{index}",
            "domain": domain,
            "teacher": teacher or domain,
            "split": split,
            "mode": mode,
            "reward": reward,
            "format": 1,
            "num_tokens": 5,
        }
        for index, reward in enumerate(outcomes)
    ]


@pytest.fixture
def save(tmp_path: Path) -> Save:
    """Write a scores file and return its path."""

    def write(name: str, content: Sequence[Row]) -> Path:
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps({"model": name, "rows": list(content)}), encoding="utf-8")
        return path

    return write


@pytest.fixture
def words(save: Save) -> list[str]:
    """The command line of a complete comparison: two domains, two teachers, three baselines."""
    student = [
        row
        for split in ("train", "test")
        for mode in ("sampled", "greedy")
        for row in (*rows("math", [1, 1, 0, 1], split, mode), *rows("code", [1, 0, 0, 1], split, mode))
    ]
    math = [row for row in student if row["domain"] == "math"] + rows("code", [0, 0, 0, 1], teacher="code")
    files = {
        "student": student,
        "teacher.math": [{**row, "reward": 1} if row["domain"] == "math" else row for row in math],
        "teacher.code": [row for row in student if row["domain"] == "code"],
        "base": [row for row in student if row["key"] in {"math0", "math2", "code0"}],
        "average": student,
        "task_arithmetic": student,
    }
    return [f"{role}={save(role, content)}" for role, content in files.items()]


def test_bootstrap_means_have_the_spread_of_the_binomial() -> None:
    values = np.array([[1.0] * 300 + [0.0] * 100])
    means = resampled_means(values, 4000, seed=0)[0]
    assert means.mean() == pytest.approx(0.75, abs=2e-3)
    assert means.std() == pytest.approx((0.75 * 0.25 / 400) ** 0.5, rel=0.05)


def test_bootstrap_interval_of_a_mean_is_the_normal_one_for_many_prompts() -> None:
    values = np.array([1.0] * 600 + [0.0] * 400)
    interval = mean_interval(values, 8000, seed=1)
    half = 1.96 * (0.6 * 0.4 / 1000) ** 0.5
    assert interval.value == pytest.approx(0.6)
    assert interval.low == pytest.approx(0.6 - half, abs=4e-3)
    assert interval.high == pytest.approx(0.6 + half, abs=4e-3)


def test_equal_answers_have_a_parity_of_one_without_spread() -> None:
    answers = np.array([1.0, 0.0, 1.0, 1.0, 0.0])
    student, teacher, parity = paired_intervals(answers, answers, 500, seed=0)
    assert (parity.value, parity.low, parity.high) == (1.0, 1.0, 1.0)
    assert student == teacher
    assert student.low is not None
    assert student.low < 0.6


def test_paired_intervals_are_those_of_all_resamples() -> None:
    """Two prompts have four resamples of equal chance: (a, a), (a, b), (b, a), (b, b)."""
    student, teacher = np.array([1.0, 0.5]), np.array([1.0, 1.0])
    means = resampled_means(np.stack([student, teacher]), 20000, seed=0)
    ratio, counts = np.unique(means[0] / means[1], return_counts=True)
    assert ratio.tolist() == [0.5, 0.75, 1.0]
    assert counts / 20000 == pytest.approx([0.25, 0.5, 0.25], abs=0.01)
    _, _, parity = paired_intervals(student, teacher, 2000, seed=0)
    assert (parity.value, parity.low, parity.high) == (0.75, 0.5, 1.0)


def test_intervals_do_not_depend_on_how_resamples_are_chunked_and_follow_the_seed() -> None:
    values = np.array([0.0, 1.0, 1.0])
    assert mean_interval(values, 700, seed=3) == mean_interval(values, 700, seed=3)
    assert resampled_means(values[None], 700, seed=3).shape == (1, 700)
    assert not np.array_equal(resampled_means(values[None], 700, seed=3), resampled_means(values[None], 700, seed=4))


def test_a_teacher_that_solves_nothing_has_no_parity() -> None:
    _, teacher, parity = paired_intervals(np.array([1.0, 0.0]), np.zeros(2), 100, seed=0)
    assert teacher.value == 0.0
    assert (parity.value, parity.low, parity.high) == (None, None, None)


def test_only_prompts_that_both_answered_count(save: Save) -> None:
    words = [f"student={save('s', rows('math', [1, 0, 1, 1]))}", f"teacher.math={save('t', rows('math', [1, 1]))}"]
    cell = compare(read_models(words), 50).cells[0]
    assert cell.num_prompts == 2
    assert (cell.student.value, cell.teacher.value, cell.parity.value) == (0.5, 1.0, 0.5)


def test_several_samples_of_a_prompt_are_averaged_before_pairing(save: Save) -> None:
    samples = [*rows("math", [1, 1]), *rows("math", [0, 1]), *rows("math", [0])]
    words = [f"student={save('s', samples)}", f"teacher.math={save('t', rows('math', [1, 1]))}"]
    cell = compare(read_models(words), 50).cells[0]
    assert cell.num_prompts == 2
    assert cell.student.value == pytest.approx((1 / 3 + 1) / 2)


def test_prompts_are_paired_by_key_in_any_order(save: Save) -> None:
    words = [
        f"student={save('s', rows('math', [1, 0, 0, 1]))}",
        f"teacher.math={save('t', rows('math', [1, 0, 0, 1])[::-1])}",
    ]
    parity = compare(read_models(words), 200).cells[0].parity
    assert (parity.low, parity.high) == (1.0, 1.0)


def test_the_report_has_the_promised_layout(cli: Cli, words: list[str], tmp_path: Path) -> None:
    code, out, _ = cli("parity", *words, "--output", tmp_path / "report", "--bootstrap", 100)
    assert code == 0
    report = json.loads((tmp_path / "report" / "parity.json").read_text())
    assert set(report["domains"]) == {"math", "code"}
    for splits in report["domains"].values():
        assert set(splits) == {"train", "test"}
        for modes in splits.values():
            assert set(modes) == {"sampled", "greedy"}
            for cell in modes.values():
                assert set(cell) == {"student", "teacher", "base", "average", "task_arithmetic", "parity", "n"}
                for name in set(cell) - {"n"}:
                    assert set(cell[name]) - {"n"} == {"value", "low", "high"}
                    assert cell[name]["low"] <= cell[name]["value"] <= cell[name]["high"]
    math = report["domains"]["math"]["test"]["greedy"]
    assert (math["student"]["value"], math["teacher"]["value"], math["parity"]["value"], math["n"]) == (
        0.75,
        1,
        0.75,
        4,
    )
    assert (math["base"]["value"], math["base"]["n"]) == (0.5, 2)
    assert report["domains"]["code"]["test"]["greedy"]["parity"]["value"] == 1.0
    assert report["experts"]["math"]["code"] == {"test": {"greedy": 0.25}}
    assert report["experts"]["code"] == {"code": {s: {"greedy": 0.5, "sampled": 0.5} for s in ("test", "train")}}
    assert out == (tmp_path / "report" / "parity.md").read_text()
    assert "at least 0.99 in 4 of 8 cells; the lowest is 0.750" in out
    assert (tmp_path / "report" / "curves.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # tensorboard's own
def test_curves_are_read_and_drawn(cli: Cli, words: list[str], tmp_path: Path) -> None:
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(tmp_path / "runs" / "merge" / "logs")) as writer:
        for step in range(5):
            writer.add_scalar("train/teacher_kl", 1 / (1 + step), step)
            writer.add_scalar("train/teacher_kl/math", 2 / (1 + step), step)
            writer.add_scalar("val/reward/math", step / 4, step)
        writer.add_scalar("once", 1.0, 0)
        writer.add_text("text", "words", 0)
    curves = read_curves(tmp_path / "runs")
    assert [(curve.run, curve.tag) for curve in curves] == [
        ("merge", "train/teacher_kl"), ("merge", "train/teacher_kl/math"), ("merge", "val/reward/math")
    ]  # fmt: skip
    assert curves[0].steps == (0, 1, 2, 3, 4)
    assert curves[0].values == pytest.approx([1, 1 / 2, 1 / 3, 1 / 4, 1 / 5])
    options = ["--output", tmp_path / "report", "--bootstrap", 20]
    assert cli("parity", *words, *options)[0] == 0
    without = (tmp_path / "report" / "curves.png").stat().st_size
    assert cli("parity", *words, *options, "--curves", tmp_path / "runs")[0] == 0
    assert (tmp_path / "report" / "curves.png").stat().st_size > without


def test_a_yaml_file_drives_the_report(
    cli: Cli, words: list[str], tmp_path: Path, write_yaml: Callable[[str, object], Path]
) -> None:
    config = write_yaml("parity.yaml", {"scores": words, "output": str(tmp_path / "report"), "bootstrap": 20})
    assert cli("parity", "--config", config)[0] == 0
    assert (tmp_path / "report" / "parity.md").is_file()


def test_other_models_stand_beside_the_baselines_by_their_names(
    cli: Cli, words: list[str], tmp_path: Path, save: Save
) -> None:
    other = save("mine", rows("math", [1, 0]) + rows("code", [1]))
    assert cli("parity", *words, f"other.mine={other}", "--output", tmp_path / "report", "--bootstrap", "20")[0] == 0
    table = (tmp_path / "report" / "parity.md").read_text().splitlines()
    assert any(line.startswith("| domain") and line.endswith("| mine |") for line in table)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda words: [*words, "other.=x.json"], "`other.` is not a role"),
        (lambda words: [*words, "studnt=x.json"], "`studnt` is not a role in `studnt=x.json`. Did you mean `student`?"),
        (lambda words: words[1:], "expected a word `student=FILE`"),
        (lambda words: [*words, words[0]], "`student` is given twice"),
        (
            lambda words: [word for word in words if "teacher.code" not in word],
            "add `teacher.code=FILE` (given: `teacher.math`)",
        ),
        (lambda words: [*words[:3], "base=missing.json"], "scores file `missing.json` does not exist"),
        (lambda words: [*words, "scores.json"], "expected ROLE=FILE, got `scores.json`"),
    ],
)
def test_wrong_scores_are_answered_in_one_line(
    cli: Cli, words: list[str], tmp_path: Path, change: Callable[[list[str]], list[str]], expected: str
) -> None:
    code, _, err = cli("parity", *change(words), "--output", tmp_path / "report")
    assert code == 2
    assert expected in err
    assert err.count("\n") == 1
    assert not (tmp_path / "report").exists()


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("{", "is not JSON"),
        ('{"rows": []}', "holds no rows"),
        ('{"rows": [{"key": "a"}]}', "row 0: expected a string `domain`, got None"),
        (
            '{"rows": [{"key": "a", "domain": "b", "teacher": "c", "split": "test", "mode": "greedy"}]}',
            "number `reward`",
        ),
    ],
)
def test_a_broken_scores_file_is_named(cli: Cli, tmp_path: Path, content: str, expected: str) -> None:
    path = tmp_path / "broken.json"
    path.write_text(content)
    code, _, err = cli("parity", f"student={path}", "--output", tmp_path / "report")
    assert code == 2
    assert str(path) in err
    assert expected in err


def test_student_and_teacher_without_a_common_prompt_are_an_error(cli: Cli, save: Save, tmp_path: Path) -> None:
    student, teacher = save("s", rows("math", [1])), save("t", rows("math", [1], split="train"))
    code, _, err = cli("parity", f"student={student}", f"teacher.math={teacher}", "--output", tmp_path)
    assert code == 2
    assert "math · test · greedy: student and teacher (math) fraction no prompt" in err
