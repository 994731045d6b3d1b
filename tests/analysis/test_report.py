from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from lightning_opd.analysis.curves import read_curves
from lightning_opd.analysis.report import compare
from lightning_opd.analysis.scores import read_models
from tests.commands import Cli

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


def test_the_seed_of_the_report_is_that_of_its_intervals(cli: Cli, save: Save, tmp_path: Path) -> None:
    outcomes = [index % 3 / 2 for index in range(40)]
    words = [f"student={save('s', rows('math', outcomes))}", f"teacher.math={save('t', rows('math', outcomes[::-1]))}"]
    reports = []
    for seed in (0, 0, 1):
        assert cli("parity", *words, "--output", tmp_path, "--bootstrap", 100, "--seed", seed)[0] == 0
        reports.append((tmp_path / "parity.json").read_text())
    assert reports[0] == reports[1]
    assert reports[0] != reports[2]


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


def test_the_report_fits_a_narrow_terminal_and_loses_no_number(
    cli: Cli, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("FORCE_COLOR", "1")  # stands for a terminal
    code, out, _ = cli("parity", *words, "--output", tmp_path, "--bootstrap", 100)
    assert code == 0
    assert max(map(len, out.splitlines())) <= 60
    text = (tmp_path / "parity.md").read_text()
    assert "| domain | n | student |" in text
    assert sorted(re.findall(r"\d\.\d{3}", out)) == sorted(re.findall(r"\d\.\d{3}", text))
    assert re.search(r"^domain +math\nn +4\nstudent +0\.750 \[0", out, re.MULTILINE)
    monkeypatch.setenv("COLUMNS", "250")
    _, wide, _ = cli("parity", *words, "--output", tmp_path, "--bootstrap", 100)
    assert wide == text


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
    assert "math · test · greedy: student and teacher (math) have no prompt in common" in err


def test_prompts_of_several_teachers_have_nobody_to_be_compared_with(
    cli: Cli, words: list[str], tmp_path: Path
) -> None:
    content = Path(words[0].removeprefix("student=")).read_text()
    (tmp_path / "mixed.json").write_text(content.replace('"teacher": "code"', '"teacher": "code:0.5+math:0.5"'))
    code, _, err = cli("parity", f"student={tmp_path / 'mixed.json'}", *words[1:], "--output", tmp_path / "report")
    assert code == 2
    assert "belong to several teachers (code:0.5+math:0.5)" in err
    assert "Test rows that name one teacher each." in err
