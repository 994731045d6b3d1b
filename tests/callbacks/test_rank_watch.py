from __future__ import annotations

import signal
import subprocess
import threading
import time
from collections.abc import Callable
from datetime import timedelta

import pytest
from lightning.fabric.plugins.environments.lightning import find_free_network_port
from torch._C._distributed_c10d import TCPStore  # where its types are

from lightning_opd.callbacks.rank_watch import Beats, Meeting


class Lost:
    """Remembers what it was told of."""

    def __init__(self) -> None:
        self.told = threading.Event()
        self.ranks: list[int] = []
        self.line = ""

    def __call__(self, rank: int, line: str) -> None:
        self.ranks.append(rank)
        self.line = line
        self.told.set()


@pytest.fixture
def store() -> Callable[[], TCPStore]:
    port = find_free_network_port()
    first = TCPStore("127.0.0.1", port, is_master=True, timeout=timedelta(seconds=10), wait_for_workers=False)
    others: list[TCPStore] = [first]

    def another() -> TCPStore:
        others.append(TCPStore("127.0.0.1", port, is_master=False, timeout=timedelta(seconds=10)))
        return others[-1]

    return another


def test_a_process_that_never_answers_is_named(store: Callable[[], TCPStore]) -> None:
    lost = [Lost() for _ in range(3)]
    beats = [Beats(store(), rank, 3, 1.0, lost[rank]) for rank in (0, 1)]  # the third one is stopped
    assert all(one.told.wait(10) for one in lost[:2])
    for one in beats:
        one.stop()
    assert [one.ranks for one in lost[:2]] == [[2], [2]]
    assert (
        "rank 2 has not answered for 1 s (allowed are 1 s, the strategy's `timeout` up to half an hour)" in lost[0].line
    )
    assert "Rank 0 ends" in lost[0].line


def test_processes_that_answer_or_have_left_are_left_alone(store: Callable[[], TCPStore]) -> None:
    lost = [Lost(), Lost()]
    beats = [Beats(store(), rank, 2, 1.5, lost[rank]) for rank in (0, 1)]
    time.sleep(0.5)
    beats[1].stop()
    time.sleep(2.5)  # longer than the timeout
    beats[0].stop()
    assert [one.ranks for one in lost] == [[], []]


@pytest.mark.parametrize(
    ("rank", "stopped", "expected"),
    [(0, 2, "rank 2 is stopped. Rank 0 ends"), (1, 0, "rank 0 is stopped. Rank 1 ends")],
)
def test_a_process_that_is_stopped_before_they_meet_is_named(rank: int, stopped: int, expected: str) -> None:
    others = {number: subprocess.Popen(["sleep", "60"]) for number in {0, 1, 2} - {rank}}
    others[stopped].send_signal(signal.SIGSTOP)
    lost = Lost()
    Meeting(rank, 0.5, lambda: {number: process.pid for number, process in others.items()}, lost)
    assert lost.told.wait(10)
    for process in others.values():
        process.kill()
        process.wait()
    assert lost.ranks == [stopped]
    assert expected in lost.line


def test_processes_that_have_met_are_left_alone() -> None:
    lost = Lost()
    meeting = Meeting(0, 0.5, dict, lost)
    meeting.stop()
    assert not lost.told.wait(1.0)
