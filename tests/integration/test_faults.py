"""Processes that are killed or stopped, at any moment: the others end, and nothing is lost."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path

import pytest

from tests.integration.chaos import SETTINGS, Chaos, command, processes_of, ranks, start, wait_for_end

pytestmark = [pytest.mark.integration, pytest.mark.slow]

NUM_KILLS = 3
"""In each of six settings; `chaos.py` goes through as many as it is told."""


def ranks_of(session: int, number: int, seconds: float = 120.0) -> list[int]:
    """Return the processes of a run once there are as many as asked."""
    deadline = time.monotonic() + seconds
    while len(found := ranks(session)) < number:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found


def wait_for_checkpoint(folder: Path, seconds: float = 200.0) -> None:
    deadline = time.monotonic() + seconds
    while not (folder / "checkpoints" / "last.ckpt").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("is_training", "victim"), [(False, 0), (True, 0), (True, 1)], ids=["starting", "training", "training, the other"]
)
def test_no_process_outlives_one_that_is_killed(is_training: bool, victim: int, world: Path, tmp_path: Path) -> None:
    words = command(world, tmp_path / "run", "ddp", "full", "--trainer.max_steps=1000")
    process = start(words, tmp_path / "log")
    if is_training:
        wait_for_checkpoint(tmp_path / "run")
    own = ranks_of(process.pid, 2)
    os.kill(own[victim], signal.SIGKILL)
    assert wait_for_end(process) < 30


@pytest.mark.parametrize("victim", [0, 1])
def test_a_stopped_process_is_named_by_the_others_which_end(victim: int, world: Path, tmp_path: Path) -> None:
    timeout = "--trainer.strategy.init_args.timeout=0:00:30"
    words = command(world, tmp_path / "run", "ddp", "full", timeout, "--trainer.max_steps=1000")
    process = start(words, tmp_path / "log")
    wait_for_checkpoint(tmp_path / "run")
    own = ranks_of(process.pid, 2)
    os.kill(own[victim], signal.SIGSTOP)
    began = time.monotonic()
    if victim == 0:  # the one that has started the others, whose end it cannot see
        while len(list(processes_of(process.pid))) > 1:
            assert time.monotonic() - began < 60
            time.sleep(0.1)
        process.kill()
    wait_for_end(process)
    assert time.monotonic() - began < 60
    said = (tmp_path / "log").read_text()
    [line] = [line for line in said.splitlines() if "has not answered" in line]
    assert line.startswith(f"error: rank {victim} has not answered for ")
    assert "--ckpt_path last" in line


@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_that_is_stopped_before_they_meet_is_named(victim: int, world: Path, tmp_path: Path) -> None:
    words = command(world, tmp_path / "run", "ddp", "full", "--trainer.strategy.init_args.timeout=0:00:20")
    process = start(words, tmp_path / "log")
    own = ranks_of(process.pid, 2)
    os.kill(own[victim], signal.SIGSTOP)
    began = time.monotonic()
    while len(list(processes_of(process.pid))) > (victim == 0):
        assert time.monotonic() - began < 100
        time.sleep(0.1)
    process.kill()
    process.wait()
    [line] = [line for line in (tmp_path / "log").read_text().splitlines() if line.startswith("error: ")]
    assert f"rank {victim} is stopped. Rank {1 - victim} ends" in line
    assert "Traceback" not in (tmp_path / "log").read_text()


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("strategy", "adapter"), SETTINGS)
def test_a_run_that_is_killed_at_random_ends_as_the_undisturbed_one(
    strategy: str, adapter: str, world: Path, tmp_path: Path
) -> None:
    said = Chaos(world, tmp_path, strategy, adapter, random.Random(f"1 {strategy} {adapter}")).run(NUM_KILLS)
    sys.stdout.write("\n".join(said) + "\n")
    assert sum("kill " in line for line in said) == NUM_KILLS
    assert said[-1].endswith("as the undisturbed run")
