"""The processes of one run live and die together."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
import time

LAUNCHER = "LIGHTNING_OPD_LAUNCHER"
"""Environment variable with the id of the process that starts the others."""

_PR_SET_PDEATHSIG = 1
_SECONDS_BETWEEN_LOOKS = 2.0


def end_with_launcher() -> None:
    """Let a process that was started for a further rank end as soon as the one that started it ends, however it does.

    Called first of all, before anything is imported that takes time: a rank that waits in a collective runs no Python.
    """
    if os.environ.get("LOCAL_RANK", "0") == "0":
        os.environ[LAUNCHER] = str(os.getpid())
        return
    parent, launcher = os.getppid(), int(os.environ.get(LAUNCHER, "0"))
    if launcher == os.getpid() or not (launcher or "TORCHELASTIC_RUN_ID" in os.environ):
        return  # started by hand: nobody's child
    if launcher and launcher != parent:
        _end()  # it has ended before this process could say so
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            _end()
    else:
        threading.Thread(target=_watch, args=(parent,), daemon=True).start()


def wait_for_ranks(launcher: object, seconds: float = 60.0) -> None:
    """Let the processes of the further ranks end by themselves; when this one ends they are killed."""
    from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher

    for process in launcher.procs if isinstance(launcher, _SubprocessScriptLauncher) else ():
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds)


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_SECONDS_BETWEEN_LOOKS)
    _end()


def _end() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
