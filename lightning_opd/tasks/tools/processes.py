"""Ends a process together with everything that it started."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

MAX_ROUNDS = 1000
"""How often descendants are looked for: killing one leaves its children to be found, and takes a moment."""

_PR_SET_CHILD_SUBREAPER = 36
_IS_LINUX = sys.platform.startswith("linux")
_LIBC = ctypes.CDLL(None, use_errno=True) if _IS_LINUX else None
"""Loaded before any fork."""


def adopt_orphans() -> None:
    """Make this process the parent of all descendants whose parents end (Linux), so that none of them gets lost."""
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def kill_with_descendants(process: int) -> None:
    """Kill a child of this process, its group, and all of its descendants, also those in sessions of their own.

    The child must not have been waited for, so that its id is still its own.
    """
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(process, signal.SIGSTOP)  # it starts nothing more, and keeps its descendants
    for _ in range(MAX_ROUNDS):
        if not [descendant for descendant in _descendants(process) if _kill(descendant)]:
            break
        time.sleep(0.001)
    for kill in (os.killpg, os.kill):  # its group, or the child alone before it has one
        with contextlib.suppress(ProcessLookupError, PermissionError):
            kill(process, signal.SIGKILL)


def _kill(process: int) -> bool:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(process, signal.SIGKILL)
        return True
    return False


def _descendants(process: int) -> Iterator[int]:
    """Yield the living descendants of a process (Linux); none elsewhere."""
    if not _IS_LINUX:
        return
    for file in Path(f"/proc/{process}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in map(int, file.read_text(encoding="ascii").split()):
                yield from _descendants(child)
                if not _is_dead(child):
                    yield child


def _is_dead(process: int) -> bool:
    """Return whether a process has ended and only waits for its parent to notice."""
    return _status(process)[0] in {"Z", "X"}


def is_computing(process: int) -> bool:
    """Return whether a process uses a processor or waits for one (Linux); False elsewhere."""
    return _status(process)[0] == "R"


def cpu_seconds(process: int) -> float:
    """Return the time that a process has had on a processor (Linux)."""
    fields = _status(process)
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK") if len(fields) > 12 else 0.0


def _status(process: int) -> list[str]:
    """Return what the system knows of a process, from its state on; that it is gone where it knows nothing."""
    try:
        stat = Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ["X"]
    return stat.rpartition(")")[2].split()
