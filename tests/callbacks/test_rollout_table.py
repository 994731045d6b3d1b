from __future__ import annotations

import time
from pathlib import Path

import pytest
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from typing_extensions import override

from lightning_opd.callbacks import RolloutTable
from lightning_opd.callbacks.rollout_table import HEADER, markdown, print_rows
from lightning_opd.types import Prompt, Split
from tests.world import Letters, make_data, make_module, make_trainer

ACTS = ("\x1b", "\x9b", "\x9d", "\r", "\b", "\x07", "\u202e", "\u2066", "\x00")


class Acting(Letters):
    """Prompts that try to take over the terminal."""

    @override
    def prompts(self, split: Split) -> list[Prompt]:
        text = "".join(ACTS) + "\x1b[2J\x1b]0;title\x07"
        return [
            Prompt(({"role": "user", "content": text},), f"{split}{i}", self.teachers[i % 2], "\x1b[31m")
            for i in range(self.num_prompts)
        ]


def test_control_sequences_of_prompts_and_responses_do_nothing_in_console_and_tensorboard(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    logger = TensorBoardLogger(tmp_path, "", "logs")
    module, data = make_module(world), make_data(Acting())
    make_trainer(tmp_path, RolloutTable(num_samples=8), max_steps=1, logger=logger).fit(module, data)
    printed, _ = capsys.readouterr()
    assert "\\x1b[2J" in printed
    events = EventAccumulator(str(tmp_path / "logs"))
    events.Reload()
    logged = events.Tensors("rollouts/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "\\x1b[2J" in logged
    assert not any(character in text for character in ACTS for text in (printed, logged))


def test_a_markdown_cell_cannot_leave_its_code() -> None:
    row = ("`<script>` | ``![x](http://x)``", "a\nb", "math", "1", "ok", "0.1")
    line = markdown([row]).splitlines()[-1]
    assert line.startswith("| ``` `<script>` \\| ``![x](http://x)`` ``` | `a⏎b` | `math` |")


@pytest.mark.parametrize("width", [80, 120, 200])
def test_the_table_fits_the_terminal_and_leaves_the_text_its_width(
    width: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rich._console", None)
    monkeypatch.setenv("COLUMNS", str(width))
    print_rows([("question " * 20, "answer " * 60, "code", "1", "ok", "0.123")], 3, 1000)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= width
    assert "[" not in "".join(lines)
    first = next(line for line in lines if "question" in line)
    prompt, response = first.strip("│").split("│")[:2]
    assert len(response) > len(prompt)


@pytest.mark.parametrize("unit", ["\n", "\x1b", "{", " a"])
def test_a_response_of_a_million_characters_is_shown_at_once(unit: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = unit * (1_000_000 // len(unit))
    rows = [tuple(text if name in ("prompt", "response") else "ok" for name in HEADER)]
    started = time.perf_counter()
    print_rows(rows, 0, 1000)
    assert len(markdown(rows)) < 2_000_000
    assert time.perf_counter() - started < 5
    printed = capsys.readouterr().out
    assert "characters" in printed
    assert printed.count("\n") < 200
