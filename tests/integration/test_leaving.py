"""A signal where nothing is trained: all processes are gone at once, whichever got it and wherever they wait."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from tests.integration.chaos import command, ranks, start, wait_for_end

pytestmark = [pytest.mark.integration, pytest.mark.slow]


@pytest.mark.parametrize(
    ("stage", "number", "receivers"),
    [
        ("test", signal.SIGTERM, slice(0, 2)),
        ("test", signal.SIGTERM, slice(1, 2)),
        ("validate", signal.SIGINT, slice(0, 1)),
        ("fit", signal.SIGTERM, slice(1, 2)),
    ],
    ids=["test, all", "test, the second", "validate, the first", "sanity check, the second"],
)
def test_all_processes_leave_at_once(
    stage: str, number: signal.Signals, receivers: slice, world: Path, tmp_path: Path
) -> None:
    extra = ["--trainer.callbacks+=tests.integration.waits.Waits", "--trainer.num_sanity_val_steps=1"]
    extra += ["--data.task.init_args.split={validation: 0.3, test: 0.3}"]
    words = command(world, tmp_path / "run", "ddp", "full", *extra)
    words[words.index("fit")] = stage
    process = start(words, tmp_path / "log")
    deadline = time.monotonic() + 120
    while not all((tmp_path / "run" / f"waits{rank}").exists() for rank in (0, 1)):
        assert time.monotonic() < deadline, (tmp_path / "log").read_text()[-3000:]
        assert process.poll() is None, (tmp_path / "log").read_text()[-3000:]
        time.sleep(0.02)
    for rank in ranks(process.pid)[receivers]:
        os.kill(rank, number)
    assert wait_for_end(process, 30) < 20
    said = (tmp_path / "log").read_text()
    assert process.returncode == 128 + number, said[-3000:]
    assert said.count(f"stopped by {number.name}; nothing was being trained") == 1
    assert "Traceback" not in said
