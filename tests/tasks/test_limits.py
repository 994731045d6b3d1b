"""Tools within limits of time and memory, whatever they do."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from lightning_opd.tasks.tools import Tool, calculate, limits
from lightning_opd.tasks.tools.limits import MAX_BYTES, TimeUp, call_in_child, call_in_process

SLACK = 20.0
"""Seconds that a busy machine may add to a time-out: a tool that is not stopped takes a minute, or for ever."""


def misbehave(how: str) -> str:
    """Do anything but answer.

    Args:
        how: In which way.
    """
    if how == "loop":
        while True:
            pass
    if how == "sleep":
        time.sleep(60)
    if how == "loop in C":
        return str(sum(range(10**12)))
    if how == "hold on to everything":
        while True:
            with contextlib.suppress(BaseException):
                time.sleep(60)
    if how == "exit":
        raise SystemExit(3)
    if how == "raise":
        raise KeyError("no such thing")
    return "x" * 10**7


@pytest.mark.parametrize("how", ["loop", "sleep", "loop in C", "hold on to everything"])
def test_a_tool_that_hangs_costs_its_time_out_and_no_more(how: str) -> None:
    started = time.perf_counter()
    assert Tool(misbehave, timeout=0.2).call({"how": how}) == "error: no answer within 0.2 s"
    assert 0.2 <= time.perf_counter() - started < 0.2 + SLACK


@pytest.mark.parametrize("how", ["loop", "sleep"])
def test_an_alarm_interrupts_python_at_no_cost(how: str) -> None:
    started = time.perf_counter()
    assert Tool(misbehave, timeout=0.1, isolated=False).call({"how": how}) == "error: no answer within 0.1 s"
    assert 0.1 <= time.perf_counter() - started < 0.1 + SLACK


def test_whatever_else_a_tool_does_is_an_answer() -> None:
    assert Tool(misbehave, isolated=False).call({"how": "raise"}) == "error: 'no such thing'"
    assert Tool(misbehave).call({"how": "raise"}) == "error: KeyError: 'no such thing'"
    assert Tool(misbehave).call({"how": "exit"}) == "error: SystemExit: 3"
    assert Tool(misbehave, max_characters=7).call({"how": "talk"}) == "x" * 7
    assert Tool(misbehave).call({}) == "error: `how` is missing"
    assert len(call_in_child(lambda: "x" * 10**7, 5.0)) < MAX_BYTES + (1 << 17)


def leave(how: str, marker: str) -> str:
    """Start a process that outlives a careless harness, and say so.

    Args:
        how: Which kind.
        marker: File that the process touches again and again.
    """
    program = f"while true; do date > {marker}; sleep 0.02; done"
    if how == "daemon" and os.fork() == 0:  # its parent ends at once
        if os.fork() == 0:
            os.setsid()
            os.execv("/bin/sh", ["sh", "-c", program])
        os._exit(0)
    if how != "daemon":
        subprocess.Popen(["/bin/sh", "-c", program], start_new_session=how != "same group")
    while not Path(marker).exists():
        time.sleep(0.01)
    if how == "and hang":
        time.sleep(60)
    return "started"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere only the tool's own group dies")
@pytest.mark.parametrize("how", ["same group", "own session", "daemon", "and hang"])
def test_what_a_tool_starts_dies_with_it(how: str, tmp_path: Path) -> None:
    marker = tmp_path / "alive"
    answer = Tool(leave, timeout=5.0 if how != "and hang" else 1.5).call({"how": how, "marker": str(marker)})
    assert answer == ("started" if how != "and hang" else "error: no answer within 1.5 s")
    marker.unlink(missing_ok=True)
    time.sleep(0.2)
    assert not marker.exists()


def take(megabytes: int) -> str:
    """Take memory.

    Args:
        megabytes: How much.
    """
    return f"took {len(bytearray(megabytes << 20)) >> 20}"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux says what a process has")
def test_a_tools_memory_is_limited() -> None:
    tool = Tool(take, timeout=20.0, max_memory=256 << 20)
    assert tool.call({"megabytes": 16}) == "took 16"
    assert tool.call({"megabytes": 512}) == "error: MemoryError: the tool needs more memory than it may take"
    assert Tool(take, timeout=20.0, max_memory=None).call({"megabytes": 512}) == "took 512"


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, GeneratorExit])
@pytest.mark.parametrize("isolated", [True, False])
def test_a_tool_cannot_end_the_program(error: type[BaseException], isolated: bool) -> None:
    def leave_the_program() -> str:
        """Leave."""
        raise error(3)

    assert Tool(leave_the_program, isolated=isolated).call({}) == f"error: {error.__name__}: 3"


def test_the_user_can_still_end_the_program_while_a_tool_runs() -> None:
    def press_the_keys() -> str:
        """Press them."""
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)
        return "not interrupted"

    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            Tool(press_the_keys, timeout=10.0, isolated=False).call({})
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, handler)


def test_tools_in_many_threads_do_not_wait_for_each_other() -> None:
    def wait(number: int) -> str:
        """Wait.

        Args:
            number: What to answer.
        """
        time.sleep(1.0)
        return str(number)

    tool, started = Tool(wait, timeout=30.0), time.perf_counter()
    with ThreadPoolExecutor(32) as pool:
        answers = list(pool.map(lambda number: tool.call({"number": number}), range(32)))
    assert answers == [str(number) for number in range(32)]
    assert time.perf_counter() - started < 16


def test_an_answer_given_while_its_time_is_looked_at_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()

    def is_computing(process: int) -> bool:
        os.write(writer, limits._LENGTH.pack(b"A", 2) + b"42")  # and so it is idle from now on
        return False

    monkeypatch.setattr(limits, "is_computing", is_computing)
    try:
        assert limits._read(reader, os.getpid(), 0.01) == (b"A", "42")
    finally:
        os.close(reader)
        os.close(writer)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux says what a process has had")
def test_tools_that_compute_have_their_time_however_many_do_so() -> None:
    def compute(number: int) -> str:
        """Compute.

        Args:
            number: What to answer.
        """
        started = time.process_time()
        while time.process_time() - started < 0.3:
            pass
        return str(number)

    num = min(64, 4 * (os.cpu_count() or 1))
    tool = Tool(compute, timeout=0.6)
    with ThreadPoolExecutor(num) as pool:
        answers = list(pool.map(lambda number: tool.call({"number": number}), range(num)))
    assert answers == [str(number) for number in range(num)]


def test_a_child_changes_nothing_here_and_an_alarm_leaves_no_trace() -> None:
    seen = [0]
    assert call_in_child(lambda: str(seen.pop()), 5.0) == "0"
    assert seen == [0]
    before = signal.getsignal(signal.SIGALRM)
    with pytest.raises(TimeUp):
        call_in_process(lambda: misbehave("loop"), 0.05)
    assert signal.getsignal(signal.SIGALRM) is before
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_an_alarm_needs_the_main_thread() -> None:
    answers: list[str] = []
    thread = threading.Thread(
        target=lambda: answers.append(Tool(calculate, isolated=False).call({"expression": "1+1"}))
    )
    thread.start()
    thread.join()
    assert "main thread" in answers[0]


@pytest.mark.parametrize("wrong", [{"timeout": 0.0}, {"max_characters": 0}, {"max_memory": 0}])
def test_limits_must_be_positive(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Tool(calculate, **wrong)
