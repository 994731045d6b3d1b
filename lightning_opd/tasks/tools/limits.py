"""Runs a function for a limited time, whatever it does."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import threading
import time
import warnings
from collections.abc import Callable
from types import FrameType

MAX_BYTES = 1 << 20
"""Most bytes that are read of a child's answer."""


class TimeUp(BaseException):
    """A time limit has passed; no `except Exception` of a tool catches it."""


def call_in_process(function: Callable[[], str], seconds: float) -> str:
    """Return what a function answers, or raise when its time is up.

    An alarm interrupts Python code and most waiting, at no cost. It cannot interrupt a single call into C
    that never returns to Python, nor a function that catches everything: use `call_in_child` for those.

    Raises:
        TimeUp: The time is up.
        RuntimeError: Not in the main thread, which alone may set an alarm.
    """
    if threading.current_thread() is not threading.main_thread():
        msg = "A tool with `isolated: false` must run in the main thread, where an alarm can stop it. Isolate it."
        raise RuntimeError(msg)

    def interrupt(signum: int, frame: FrameType | None) -> None:
        raise TimeUp

    handler = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, seconds)
        try:
            return function()
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    finally:
        signal.signal(signal.SIGALRM, handler)


def call_in_child(function: Callable[[], str], seconds: float) -> str:
    """Return what a function answers in a forked child, which is killed when its time is up.

    Nothing the function does to this process's memory stays, and no loop, sleep or call into C outlives its
    time; its own children die with it. A fork costs milliseconds.

    Raises:
        TimeUp: The time is up.
        RuntimeError: With the child's own exception as text.
    """
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # a child that deadlocks is killed like any other
        child = os.fork()
    if child == 0:
        _answer(function, reader, writer)
    os.close(writer)
    try:
        answer = _read(reader, time.monotonic() + seconds)
    finally:
        os.close(reader)
        for kill in (os.killpg, os.kill):  # its group, or the child alone before it has one
            with contextlib.suppress(ProcessLookupError, PermissionError):
                kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    text = answer[1:].decode("utf-8", errors="replace")
    if answer[:1] == b"E":
        raise RuntimeError(text)
    return text


def _answer(function: Callable[[], str], reader: int, writer: int) -> None:
    """Be the child: write the answer and vanish, without any of the parent's clean-up."""
    try:
        os.setsid()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGALRM):
            signal.signal(number, signal.SIG_DFL)
        os.close(reader)
        try:
            answer = b"A" + function().encode("utf-8", errors="replace")
        except BaseException as error:  # a child has nobody else to tell
            answer = b"E" + f"{type(error).__name__}: {error}".encode("utf-8", errors="replace")
        while answer:
            answer = answer[os.write(writer, answer) :]
    finally:
        os._exit(0)


def _read(reader: int, deadline: float) -> bytes:
    """Return everything that a child sends until it closes the pipe."""
    answer = b""
    while len(answer) < MAX_BYTES:
        ready, _, _ = select.select([reader], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            raise TimeUp
        part = os.read(reader, 1 << 16)
        if not part:
            break
        answer += part
    if not answer:
        msg = "the tool ended without an answer"
        raise RuntimeError(msg)
    return answer
