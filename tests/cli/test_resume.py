from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.commands import Cli
from tests.integration.chaos import command

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's advice on workers, loggers and restored callbacks


def words(world: Path, folder: Path, *more: str) -> list[str]:
    return command(world, folder, "cpu", "lora", "--ckpt_path", "auto", *more)[3:]


def test_the_same_command_begins_and_goes_on(cli: Cli, world: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    last = run / "checkpoints" / "last.ckpt"
    code, _, err = cli(*words(world, run, "--trainer.max_steps=1"))
    assert code == 0, err
    (last.parent / ".last.ckpt.partial").write_bytes(b"a killed save's")
    before = last.stat().st_ino
    code, _, err = cli(*words(world, run, "--trainer.max_steps=2"))
    assert code == 0, err
    assert last.stat().st_ino != before
    assert sorted(p.name for p in last.parent.iterdir()) == ["last.ckpt", "last.ckpt.previous"]
    assert [p.name for p in (run / "lightning_logs").iterdir()] == ["version_0"]  # a new run has a new one

    moved = tmp_path / "base"
    (world / "student").rename(moved)  # found before any weight is loaded
    try:
        code, _, err = cli(*words(world, run, "--model.optimizer.init_args.lr=0.5", "--model.student.lora.rank=4"))
    finally:
        moved.rename(world / "student")
    assert code == 2
    assert "`model.optimizer.lr` was `0.001`, is `0.5`" in err
    assert "`model.student.lora.rank` was `2`, is `4`" in err
    assert "--model.allow_changed=[model.optimizer.lr,model.student.lora.rank]" in err


PARENT = """
import os, subprocess, sys, time
from lightning_opd.cli.processes import end_with_launcher
end_with_launcher()
if os.environ.get("LOCAL_RANK", "0") == "0":
    child = subprocess.Popen([sys.executable, __file__], env={**os.environ, "LOCAL_RANK": "1"})
    print(child.pid, flush=True)
else:
    print("ready", flush=True)
time.sleep(60)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere a thread looks every two seconds")
def test_a_further_rank_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    script = tmp_path / "ranks.py"
    script.write_text(PARENT)
    environment = {key: value for key, value in os.environ.items() if key != "LOCAL_RANK"}
    parent = subprocess.Popen([sys.executable, str(script)], env=environment, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    said = {parent.stdout.readline().strip(), parent.stdout.readline().strip()}
    [child] = said - {"ready"}
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    deadline = time.monotonic() + 10
    while Path(f"/proc/{child}").exists() and Path(f"/proc/{child}/stat").read_text().split()[2] != "Z":
        assert time.monotonic() < deadline
        time.sleep(0.05)
    parent.stdout.close()
