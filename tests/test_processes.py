from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

PARENT = """
import os, subprocess, sys, time
from lightning_opd.processes import end_with_launcher
end_with_launcher()
if os.environ.get("LOCAL_RANK", "0") == "0":
    child = subprocess.Popen([sys.executable, __file__], env={**os.environ, "LOCAL_RANK": "1"})
    print(child.pid, flush=True)
else:
    print("ready", flush=True)
time.sleep(60)
"""


def started(tmp_path: Path) -> tuple[subprocess.Popen[str], int]:
    """Return a process and the id of the one that it has started for a further rank."""
    script = tmp_path / "ranks.py"
    script.write_text(PARENT)
    environment = {key: value for key, value in os.environ.items() if key != "LOCAL_RANK"}
    parent = subprocess.Popen([sys.executable, str(script)], env=environment, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    said = {parent.stdout.readline().strip(), parent.stdout.readline().strip()}
    [child] = said - {"ready"}
    return parent, int(child)


def wait_until_gone(process: int) -> None:
    deadline = time.monotonic() + 10
    while Path(f"/proc/{process}").exists() and Path(f"/proc/{process}/stat").read_text().split()[2] != "Z":
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere a thread looks every two seconds")
def test_a_further_rank_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    parent, child = started(tmp_path)
    with parent:
        parent.send_signal(signal.SIGKILL)
        parent.wait()
        wait_until_gone(child)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere a thread looks every two seconds")
def test_a_further_rank_passes_a_signal_on_and_leaves_nobody_behind(tmp_path: Path) -> None:
    parent, child = started(tmp_path)
    with parent:
        os.kill(child, signal.SIGTERM)
        assert parent.wait(10) == -signal.SIGTERM
        wait_until_gone(child)
