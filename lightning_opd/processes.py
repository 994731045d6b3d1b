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
from collections.abc import Callable, Iterator
from types import FrameType

LAUNCHER = "LIGHTNING_OPD_LAUNCHER"
"""Environment variable with the id of the process that starts the others."""

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
"""What a scheduler or a user ends a run by."""

_PR_SET_PDEATHSIG = 1
_SECONDS_BETWEEN_LOOKS = 2.0


def end_with_launcher() -> None:
    """Let a process that was started for a further rank end as soon as the one that started it ends, however it does.

    A signal that asks it to end it tells that one, which ends with all that it has started: no rank is left behind.
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
    for number in SIGNALS if launcher else ():
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, tell_launcher)
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            _end()
    else:
        threading.Thread(target=_watch, args=(parent,), daemon=True).start()


def launcher_id() -> int:
    """Return the id of the process that has started this one for a further rank; 0 where none has."""
    launcher = int(os.environ.get(LAUNCHER, "0"))
    return launcher if launcher == os.getppid() else 0


def tell_launcher(number: int, frame: FrameType | None = None) -> None:
    """Pass a signal on to the process that has started this one."""
    if launcher := launcher_id():
        os.kill(launcher, number)


@contextlib.contextmanager
def hearing(answer: Callable[[int], None]) -> Iterator[None]:
    """Let a thread answer signals when they come: while the main thread waits in a collective, it hears of none.

    Args:
        answer: Called in that thread with a signal's number, beside the handler that the main thread calls.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)

    def listen() -> None:
        while number := os.read(reader, 1)[0]:
            if number in SIGNALS:
                answer(number)
        os.close(reader)

    threading.Thread(target=listen, daemon=True, name="signals").start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.write(writer, b"\0")
        os.close(writer)


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
