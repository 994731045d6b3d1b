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
