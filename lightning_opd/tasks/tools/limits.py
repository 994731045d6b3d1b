"""Runs a function within limits of time and memory, whatever it does."""

from __future__ import annotations

import contextlib
import os
import resource
import select
import signal
import struct
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

from lightning_opd.tasks.tools.processes import adopt_orphans, cpu_seconds, is_computing, kill_with_descendants

MAX_BYTES = 1 << 20
"""Most bytes that are read of a child's answer."""

MAX_PATIENCE = 30
"""How many times its seconds a child has that computes while others have the processors."""

MIN_SECONDS = 0.02
"""Shortest time that is worth waiting: the system counts in hundredths of a second."""

_ONE_FORK = threading.Lock()
"""Held while a child and its pipe come to be, so that no other child keeps the pipe's end."""

_LENGTH = struct.Struct("!cQ")


class TimeUp(BaseException):
    """A time limit has passed; no `except Exception` of a tool catches it."""


def call_in_process(function: Callable[[], str], seconds: float) -> str:
    """Return what a function answers, or raise when its time is up.

    An alarm interrupts Python code and most waiting, at no cost. It cannot interrupt a single call into C
    that never returns to Python, nor a function that catches everything: use `call_in_child` for those.

    Raises:
        TimeUp: The time is up.
        RuntimeError: Not in the main thread, which alone may set an alarm; or the function tried to end the program.
        KeyboardInterrupt: The user asked for it, not the function.
    """
    if threading.current_thread() is not threading.main_thread():
        msg = "A tool with `isolated: false` must run in the main thread, where an alarm can stop it. Isolate it."
        raise RuntimeError(msg)

    def interrupt(signum: int, frame: FrameType | None) -> None:
        raise TimeUp

    handler = signal.signal(signal.SIGALRM, interrupt)
    try:
        with _interrupts() as seen:
            signal.setitimer(signal.ITIMER_REAL, seconds)
            try:
                return function()
            except (SystemExit, KeyboardInterrupt, GeneratorExit) as error:
                if seen:
                    raise
                msg = f"{type(error).__name__}: {error}"
                raise RuntimeError(msg) from None
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
    finally:
        signal.signal(signal.SIGALRM, handler)


@contextlib.contextmanager
def _interrupts() -> Iterator[list[int]]:
    """Record signals of the user's Ctrl-C, which otherwise work as before."""
    before, seen = signal.getsignal(signal.SIGINT), list[int]()

    def record(signum: int, frame: FrameType | None) -> None:
        seen.append(signum)
        if callable(before):
            before(signum, frame)

    if before is None:  # not installed by Python, so it could not be put back
        yield seen
        return
    signal.signal(signal.SIGINT, record)
    try:
        yield seen
    finally:
        signal.signal(signal.SIGINT, before)


def call_in_child(function: Callable[[], str], seconds: float, max_memory: int | None = None) -> str:
    """Return what a function answers in a forked child, which is killed when its time is up.

    Nothing the function does to this process's memory stays, and no loop, sleep or call into C outlives its
    time; the processes that it started die with it, also those that left its group (Linux). A child that computes has
    its time on a processor, however many others do so too (Linux). A fork costs milliseconds.

    Args:
        function: What to run.
        seconds: Its time.
        max_memory: Bytes that it may take besides what this process has; None for no limit.

    Raises:
        TimeUp: The time is up.
        RuntimeError: With the child's own exception as text.
    """
    with _ONE_FORK:
        reader, writer = os.pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # a child that deadlocks is killed like any other
            child = os.fork()
        if child == 0:
            _answer(function, reader, writer, max_memory)
        os.close(writer)
    try:
        kind, text = _read(reader, child, seconds)
    finally:
        os.close(reader)
        kill_with_descendants(child)
        os.waitpid(child, 0)
    if kind == b"E":
        raise RuntimeError(text)
    return text


def _answer(function: Callable[[], str], reader: int, writer: int, max_memory: int | None) -> None:
    """Be the child: write the answer and wait for the end, without any of the parent's clean-up."""
    try:
        os.setsid()
        adopt_orphans()
        _ONE_FORK.release()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGALRM):
            signal.signal(number, signal.SIG_DFL)
        os.close(reader)
        try:
            if max_memory is not None:
                limit_memory(max_memory)
            kind, answer = b"A", function().encode("utf-8", errors="replace")
        except MemoryError:
            kind, answer = b"E", b"MemoryError: the tool needs more memory than it may take"
        except BaseException as error:  # a child has nobody else to tell
            kind, answer = b"E", f"{type(error).__name__}: {error}".encode("utf-8", errors="replace")
        answer = _LENGTH.pack(kind, len(answer)) + answer
        while answer:
            answer = answer[os.write(writer, answer) :]
        while True:
            signal.pause()  # the parent ends this process, and with it those that it started
    finally:
        os._exit(0)


def limit_memory(num_bytes: int) -> None:
    """Let this process and its children take so many bytes more than it has, each of them."""
    if not sys.platform.startswith("linux"):
        return
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    sizes = dict(line.split(":", 1) for line in status.splitlines())
    for kind, name in ((resource.RLIMIT_AS, "VmSize"), (resource.RLIMIT_DATA, "VmData")):
        _, hard = resource.getrlimit(kind)
        limit = (int(sizes[name].split()[0]) << 10) + num_bytes
        resource.setrlimit(kind, (limit, hard) if hard == resource.RLIM_INFINITY or limit < hard else (hard, hard))


def _read(reader: int, child: int, seconds: float) -> tuple[bytes, str]:
    """Return whether a child answers or fails, and its text, cut to `MAX_BYTES`."""
    received, needed = b"", _LENGTH.size
    deadline, last = (time.monotonic() + seconds * factor for factor in (1, MAX_PATIENCE))
    while len(received) < needed:
        ready, _, _ = select.select([reader], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            missed = min(seconds - cpu_seconds(child), last - time.monotonic()) if is_computing(child) else 0.0
            if missed < MIN_SECONDS:
                if select.select([reader], [], [], 0)[0]:  # it is idle because it has just answered
                    continue
                raise TimeUp
            deadline = time.monotonic() + missed  # it waits for a processor, not for anything else
            continue
        part = os.read(reader, 1 << 16)
        if not part:
            break
        received += part
        if len(received) >= _LENGTH.size:
            needed = _LENGTH.size + min(_LENGTH.unpack_from(received)[1], MAX_BYTES)
    if len(received) < _LENGTH.size:
        msg = "the tool ended without an answer"
        raise RuntimeError(msg)
    kind, _ = _LENGTH.unpack_from(received)
    return kind, received[_LENGTH.size : _LENGTH.size + MAX_BYTES].decode("utf-8", errors="replace")
