from __future__ import annotations

import io
import logging
import re
import sys
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Timer
from rich.console import Console
from typing_extensions import override

from lightning_opd.callbacks import RolloutProgressBar
from lightning_opd.callbacks.live_lines import LiveLines, State
from lightning_opd.callbacks.pace import Pace, clock
from lightning_opd.data import Evaluation
from lightning_opd.errors import ConfigError
from lightning_opd.functional.policy_losses import PPOClip
from lightning_opd.interfaces import OPDCallback
from lightning_opd.objectives import PolicyGradient
from lightning_opd.types import RolloutBatch, Sampling
from tests.world import STOPS, Recorder, make_data, make_module, make_trainer


class Watched(RolloutProgressBar):
    """Keeps what the bar shows whenever it is told something."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.states: list[State] = []

    @override
    def on_phase(self, phase: str, num_done: int, num_total: int) -> None:
        super().on_phase(phase, num_done, num_total)
        self.states.append(self.state())

    @override
    def on_train_batch_start(self, *args: Any) -> None:
        super().on_train_batch_start(*args)
        self.states.append(self.state())


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """Make the console a terminal of 80 columns, and return what is drawn."""
    drawn = io.StringIO()
    monkeypatch.setattr("rich._console", Console(file=drawn, force_terminal=True, width=80, height=24, _environ={}))
    return drawn


def counts(state: State) -> tuple[int, int, int, int]:
    found = re.fullmatch(r"batch (\d+)/(\d+) · step (\d+)/(\d+)", state[0])
    assert found is not None, state
    return int(found[1]), int(found[2]), int(found[3]), int(found[4])


def test_the_tokens_of_a_rollout_batch_are_its_own(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: list[int] = []
    monkeypatch.setattr(Pace, "end_batch", lambda pace, now, num_tokens: counted.append(num_tokens))
    recorder = Recorder()
    trainer = make_trainer(tmp_path, RolloutProgressBar(plain=True), recorder, max_steps=3, enable_progress_bar=True)
    trainer.fit(make_module(world), make_data())
    assert counted == [int(rollouts.num_active_tokens) for rollouts in recorder.rollout_batches]
    assert len(counted) == 3


@pytest.mark.parametrize(("updates", "accumulate"), [(1, 1), (1, 4), (2, 2)])
def test_batches_and_steps_never_exceed_their_totals_and_truncated_replies_count(
    updates: int, accumulate: int, world: Path, tmp_path: Path, terminal: io.StringIO
) -> None:
    bar = Watched()
    sampling = Sampling(max_new_tokens=4, stop_token_ids=STOPS[:1])  # most replies are cut
    data = make_data(updates_per_batch=updates, sampling=sampling)
    module = make_module(world, PolicyGradient(policy_loss=PPOClip()))
    settings: dict[str, Any] = {
        "limit_val_batches": 1,
        "val_check_interval": 2 * updates * accumulate,
        "num_sanity_val_steps": 1,
    }
    trainer = make_trainer(
        tmp_path, bar, max_steps=6, accumulate_grad_batches=accumulate, enable_progress_bar=True, **settings
    )
    trainer.fit(module, data)
    in_training = [state for state in bar.states if not state[1].startswith("validate") or "step 0" not in state[0]]
    seen = [counts(state) for state in in_training]
    assert {(batches, steps) for _, batches, _, steps in seen} == {(6 // updates, 6)}
    assert all(batch <= batches and step <= steps for batch, batches, step, steps in seen)
    phases = [state[1] for state in bar.states]
    assert phases.count("generate 8/8") == 6 // updates
    assert {f"update {i + 1}/{accumulate}" for i in range(accumulate)} <= set(phases)
    assert {"generate", "score", "prepare", "validate 1/1 · generate", "validate 1/1 · score"} <= set(phases)
    fractions = [state[2] for state in bar.states if state[2] is not None]
    assert fractions == sorted(fractions)
    assert bar.state()[0] == f"batch {6 // updates}/{6 // updates} · step 6/6"
    assert bar.state()[1] == ""  # no phase sticks
    assert max(len(line) for line in re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "\r", terminal.getvalue()).split("\r")) <= 81


def test_a_pipe_gets_one_plain_line_per_rollout_batch(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recorder = Recorder()
    settings: dict[str, Any] = {"accumulate_grad_batches": 2, "enable_progress_bar": True, "limit_val_batches": 1}
    trainer = make_trainer(tmp_path, RolloutProgressBar(), recorder, max_steps=4, val_check_interval=8, **settings)
    trainer.fit(make_module(world, PolicyGradient(policy_loss=PPOClip())), make_data(updates_per_batch=2))
    lines = capsys.readouterr().out.splitlines()
    batches = [line for line in lines if line.startswith("batch ")]
    assert [line.split(" · ")[:2] for line in batches] == [["batch 1/2", "step 2/4"], ["batch 2/2", "step 4/4"]]
    assert all(re.search(r"\d:\d\d:\d\d elapsed · \d:\d\d:\d\d left · [\d,]+ tokens/s · ", line) for line in batches)
    assert [line for line in lines if line.startswith("validation")] == lines[-1:]
    assert "\x1b" not in "".join(lines)


def test_a_resumed_run_goes_on_counting(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trainer = make_trainer(tmp_path, max_steps=2)
    trainer.fit(make_module(world), make_data())
    trainer.save_checkpoint(tmp_path / "two.ckpt")
    again = make_trainer(tmp_path, RolloutProgressBar(), max_steps=3, enable_progress_bar=True)
    again.fit(make_module(world), make_data(), ckpt_path=tmp_path / "two.ckpt")
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("batch ")]
    assert [line.split(" · ")[:2] for line in lines] == [["batch 3/3", "step 3/3"]]


class Breaks(OPDCallback):
    """Logs, and fails in the second rollout batch."""

    @override
    def on_rollout_end(self, trainer: L.Trainer, module: L.LightningModule, rollouts: RolloutBatch) -> None:
        logging.getLogger("lightning.pytorch").info("a line of the log")
        if trainer.global_step:
            msg = "broken on purpose"
            raise RuntimeError(msg)


def test_the_screen_is_given_back_when_a_run_fails(world: Path, tmp_path: Path, terminal: io.StringIO) -> None:
    out, err = sys.stdout, sys.stderr
    handlers = [h for h in logging.getLogger("lightning.pytorch").handlers if isinstance(h, logging.StreamHandler)]
    streams = [handler.stream for handler in handlers]
    with pytest.raises(RuntimeError, match="on purpose"):
        make_trainer(tmp_path, RolloutProgressBar(), Breaks(), enable_progress_bar=True).fit(
            make_module(world), make_data()
        )
    assert (sys.stdout, sys.stderr) == (out, err)
    assert [handler.stream for handler in handlers] == streams
    assert terminal.getvalue().endswith("\x1b[?25h")  # the cursor is there again


def test_log_lines_appear_above_the_bar(terminal: io.StringIO) -> None:
    logger, handler = logging.getLogger("tests.of.the.bar"), logging.StreamHandler(sys.stderr)
    logger.addHandler(handler)
    lines = LiveLines(lambda: ("batch 1/2", "score", 0.5, ["figures"]), 0.1, stays=True)
    logger.warning("something happened")
    print("and something else")  # noqa: T201
    lines.close()
    logger.removeHandler(handler)
    assert handler.stream is sys.stderr
    assert "something happened\n" in terminal.getvalue()
    assert "and something else\n" in terminal.getvalue()


def test_a_test_tells_how_far_it_is_where_there_is_no_terminal(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lightning_opd.callbacks.progress_bar.PLAIN_SECONDS", 0.0)
    trainer = make_trainer(tmp_path, RolloutProgressBar(plain=True), enable_progress_bar=True)
    evaluation = Evaluation(splits=["test", "train"], num_prompts=8, batch_size=4)
    trainer.test(make_module(world), make_data(evaluation=evaluation), verbose=False)
    told = re.findall(r"^test (\d+)/(\d+) · [\d:]+ elapsed · ([\d:]+) left$", capsys.readouterr().out, re.MULTILINE)
    total = int(sum(trainer.num_test_batches))
    assert total > 1
    assert [(int(number), int(of)) for number, of, _ in told] == [(i, total) for i in range(1, total + 1)]
    assert told[-1][2] == "0:00:00"


@pytest.mark.parametrize("width", [20, 40, 80, 200])
def test_the_bar_is_two_lines_in_any_terminal(width: int) -> None:
    drawn = io.StringIO()
    console = Console(file=drawn, force_terminal=True, width=width, color_system=None, _environ={})
    figures = ["0:00:12 elapsed", "0:03:20 left", "1,234 tokens/s", "reward 0.531", "teacher_kl 0.211"]
    state = ("batch 13/200 · step 12/200", "generate 37/64", 0.5, figures)
    lines = LiveLines(lambda: state, 0.1, stays=True)
    lines.close()
    console.print(lines)
    shown = drawn.getvalue().splitlines()
    assert len(shown) == 2
    assert max(map(len, shown)) <= width
    if width >= 80:
        assert "━" * 10 in shown[0]
        assert shown[0].rstrip().endswith("generate 37/64")
    assert shown[1].startswith("0:00:12 elapsed")


def test_the_time_left_follows_the_last_batches_and_counts_validation() -> None:
    pace = Pace(100.0)
    assert pace.seconds_left(5, 100.0) is None
    assert pace.tokens_per_second() is None
    for end in (102.0, 104.0, 106.0):
        pace.end_batch(end, 50)
    assert pace.tokens_per_second() == pytest.approx(25)
    assert pace.seconds_left(10, 106.0) == pytest.approx(20)
    assert pace.seconds_left(10, 107.0) == pytest.approx(19)
    assert pace.seconds_left(10, 120.0) == pytest.approx(18)  # a batch that takes longer than before
    pace.pause(3.0)
    pace.end_batch(111.0, 50)  # 2 seconds of work, 3 of validation
    assert pace.tokens_per_second() == pytest.approx(25)
    assert pace.seconds_left(8, 111.0) == pytest.approx(8 * 2 + 8 * 3 / 4)
    assert pace.seconds_left(0, 111.0) == 0
    assert pace.elapsed(111.0) == 11
    for _ in range(100):
        pace.end_batch(pace._last + 1.0, 50)  # faster now
    assert pace.seconds_left(10, pace._last) == pytest.approx(10 + 10 * 3 / 104)
    assert [clock(seconds) for seconds in (None, 0.4, 59.7, 3600)] == ["-:--:--", "0:00:00", "0:01:00", "1:00:00"]


def test_a_limit_of_time_bounds_the_time_left(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings: dict[str, Any] = {"max_steps": -1, "max_epochs": -1, "enable_progress_bar": True}
    trainer = make_trainer(tmp_path, RolloutProgressBar(), Timer(duration={"seconds": 1}), **settings)
    trainer.fit(make_module(world), make_data())
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("batch ")]
    assert lines[0].startswith("batch 1 · step 1 · ")
    assert all("0:00:00 left" in line or "0:00:01 left" in line for line in lines)


def test_a_rate_of_zero_is_refused() -> None:
    with pytest.raises(ConfigError, match="refresh_per_second"):
        RolloutProgressBar(refresh_per_second=0)
    assert torch.is_grad_enabled()
