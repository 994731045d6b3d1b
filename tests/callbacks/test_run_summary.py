from __future__ import annotations

import io
import re
from pathlib import Path

import lightning as L
import pytest
from rich.console import Console

from lightning_opd.callbacks import ExportHuggingFace, LastCheckpoint, RunSummary
from lightning_opd.callbacks.run_summary import scores_table, short, show
from lightning_opd.models import Lora, load_causal_lm
from tests.world import make_data, make_module, make_trainer


def rows_of(printed: str) -> dict[str, str]:
    return dict(line.split(": ", 1) for line in printed.splitlines() if ": " in line)


def test_the_start_says_what_will_run(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trainer = make_trainer(tmp_path, RunSummary(), max_steps=2, accumulate_grad_batches=2)
    trainer.fit(make_module(world, lora=Lora(rank=2)), make_data())
    rows = rows_of(capsys.readouterr().out)
    student = re.fullmatch(r"(.*): ([\d.]+) K parameters, ([\d.]+) K of them trained", rows["student"])
    assert student is not None
    assert student[1] == str(world / "student")
    assert float(student[3]) < float(student[2]) / 2
    assert rows["teacher math"].startswith(f"{world / 'math'}: ")
    assert rows["train prompts"] == "12 (code 6, math 6)"
    assert rows["rollout batch"] == "4 prompts × 2 samples × at most 12 tokens a reply = 96 tokens, 1 update"
    assert "(2)" in rows["stop tokens"]
    assert rows["steps"] == "2 optimiser steps of 2 micro-batches a process"
    assert rows["device"] == "cpu, 32-true, 1 process"
    assert rows["output"] == str(tmp_path)


def test_the_memory_is_that_of_student_teachers_gradients_and_moments(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    module = make_module(world, lora=Lora(rank=2))
    make_trainer(tmp_path, RunSummary(), max_steps=1).fit(module, make_data())
    student = list(module.loaded_student.parameters())
    num_trained = sum(p.numel() for p in student if p.requires_grad)
    num_weights = sum(p.numel() for p in student) + sum(
        p.numel() for name in ("math", "code") for p in load_causal_lm(str(world / name)).parameters()
    )
    expected = 4 * (num_weights + 3 * num_trained) / 1e6
    assert rows_of(capsys.readouterr().out)["memory"].startswith(f"about {expected:.1f} MB a process")


def test_one_process_speaks_for_all(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(L.Trainer, "is_global_zero", property(lambda trainer: False))
    make_trainer(tmp_path, RunSummary(), max_steps=1).fit(make_module(world), make_data())
    assert "the run" not in capsys.readouterr().out


def test_the_end_says_what_came_of_it_and_where_it_lies(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    callbacks = (LastCheckpoint(every_n_steps=1), ExportHuggingFace(), RunSummary())
    trainer = make_trainer(tmp_path, *callbacks, enable_checkpointing=True, limit_val_batches=1, val_check_interval=1)
    trainer.fit(make_module(world), make_data())
    printed = capsys.readouterr().out
    assert "finished 2 optimiser steps" in printed
    rows = rows_of(printed[printed.index("finished 2") :])
    assert rows["model"] == str(tmp_path / "model")
    assert rows["checkpoint"] == str(tmp_path / "checkpoints" / "last.ckpt")
    for stage in ("train", "val"):
        numbers = re.findall(r"(\w+) (-?[\d.]+)", rows[stage])
        assert {"reward", "teacher_kl"} <= {name for name, _ in numbers}
        assert all(re.fullmatch(r"-?\d+\.\d{3}", number) for _, number in numbers)
        value = float(trainer.callback_metrics[f"{stage}/teacher_kl"])
        assert dict(numbers)["teacher_kl"] == f"{value:.3f}"
    assert "next" not in rows  # no configuration was saved


@pytest.mark.parametrize("command", ["test", "validate"])
def test_scores_are_a_table_of_three_digits_and_nothing_else(
    command: str, world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = make_trainer(tmp_path, RunSummary(), limit_val_batches=1)
    getattr(trainer, command)(make_module(world), make_data())
    printed = capsys.readouterr().out
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in printed.splitlines() if line.startswith("│")]
    assert len(cells) == (6 if command == "test" else 3)  # two modes; both domains and their mean
    assert {row[-5] for row in cells} == {"all", "code", "math"}
    assert all(re.fullmatch(r"-?\d+\.\d{3}", number) for row in cells for number in row[-4:])
    assert "Test metric" not in printed
    assert "Validate metric" not in printed


@pytest.mark.parametrize("width", [60, 80, 200])
def test_tables_fit_the_terminal_and_commands_stay_whole(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = io.StringIO()
    console = Console(file=drawn, force_terminal=True, width=width, color_system=None, _environ={})
    monkeypatch.setattr("rich._console", console)
    command = "python -m lightning_opd test --config runs/a/config.yaml --model.student.path runs/a/model"
    show("the run", [("student", "a/long/path/" * 12), ("next", command)])
    metrics = {f"test/{name}/test/greedy/{'domain' * 6}": 0.12345 for name in ("reward", "format", "teacher_kl")}
    console.print(scores_table(metrics, "test"))
    lines = drawn.getvalue().splitlines()
    assert f"next: {command}" in lines
    assert max(len(line) for line in lines if command not in line) <= width
    assert "0.123" in drawn.getvalue()


def test_domains_with_slashes_and_control_characters_keep_their_own_row() -> None:
    metrics = {
        "val/reward": 0.5,
        "val/reward/a/b": 0.25,
        "val/reward/\x1b[2J": 0.75,
        "val/loss": 9.0,
        "train/reward": 1.0,
    }
    table = scores_table(metrics, "val")
    columns = [[str(cell) for cell in column.cells] for column in table.columns]
    assert columns == [["all", "\\x1b[2J", "a/b"], ["0.500", "0.750", "0.250"]]


def test_numbers_are_short() -> None:
    assert [short(n) for n in (0, 999, 1000, 27_904, 7.6e9, 1.2e12)] == ["0", "999", "1 K", "27.9 K", "7.6 B", "1.2 T"]
