"""Rows of one's own through the command line: columns, splits and teachers that YAML names."""

from __future__ import annotations

from pathlib import Path

import pytest

from lightning_opd.cli.main import main
from tests.test_user_errors import command, message

TASK = "--data.task.init_args"


@pytest.mark.parametrize(
    ("words", "num_trained"),
    [
        ((), 40),
        pytest.param((f"{TASK}.split=hash",), 25, marks=pytest.mark.slow),
        ((f'{TASK}.split={{"validation": 0.25}}',), 30),
        pytest.param((f"{TASK}.validation_path=prompts.csv",), 40, marks=pytest.mark.slow),
    ],
    ids=["all", "hash", "fraction", "file"],
)
def test_rows_of_a_csv_file_are_trained_on(
    words: tuple[str, ...],
    num_trained: int,
    world: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All of them, or as many as the split leaves: one more is too many for a rollout batch."""
    monkeypatch.chdir(tmp_path)
    rows = "question,gold\n" + "".join(f"question {i},{i}\n" for i in range(40))
    (tmp_path / "prompts.csv").write_text(rows)
    settings = ("path=prompts.csv", 'columns={"prompt": "question", "answer": "gold"}', "teacher=math")
    arguments = command(world, tmp_path, *(f"{TASK}.{setting}" for setting in settings), *words)
    more = message([*arguments, f"--data.prompts_per_batch={num_trained + 1}"], capsys)
    assert f"`prompts_per_batch` is {num_trained + 1}" in more
    size = (f"--data.prompts_per_batch={num_trained}", "--data.sampling.max_new_tokens=2", "--trainer.max_steps=1")
    assert main([*arguments, *size]) == 0


def test_rows_without_a_split_for_the_test_are_refused_by_it(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = command(world, tmp_path)
    assert "`test`" in message(["test", *arguments[1:]], capsys)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ('columns={"promt": "question"}', "Did you mean `prompt`"),
        ('split={"valid": 0.1}', "Did you mean `validation`"),
        ("split=hashed", "hash"),
        ("teacher_field=expert", "teacher"),
        ('columns={"prompt": "questions"}', "`columns` maps `prompt` to it"),
    ],
)
def test_a_setting_that_cannot_be_meant_is_answered_in_a_line(
    setting: str, said: str, world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said in message(command(world, tmp_path, f"{TASK}.{setting}"), capsys)
