"""Ends a run in which a process no longer answers, and names it."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from functools import partial
from pathlib import Path

import lightning as L  # Lightning's own convention
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher
from torch.distributed.distributed_c10d import Store, _get_default_store
from typing_extensions import override

from lightning_opd.models import num_ranks
from lightning_opd.processes import LAUNCHER

MOST_SECONDS_BETWEEN_BEATS = 5.0
MOST_SILENCE = timedelta(minutes=30)
LEFT = "left"


class RankWatch(Callback):
    """End this process when another one of the run has not answered for the strategy's `timeout`, and say which.

    A collective alone would wait for a process that is stopped, swapped out or on a machine that is gone, and then
    say only that it has waited. Each process tells the others twenty times per `timeout` that it is alive. A long
    `timeout` is for a process whose replies are long, and says nothing about one that is lost: half an hour of silence
    ends the run in any case. The command line adds this callback by itself.
    """

    def __init__(self) -> None:
        """Wait for the processes to meet."""
        self._beats: Beats | None = None
        self._meeting: Meeting | None = None

    @contextlib.contextmanager
    def meeting(self, trainer: L.Trainer) -> Iterator[None]:
        """Watch from now on, before the processes have met, that they do; at the end they need not have.

        Args:
            trainer: Not yet started.
        """
        if trainer.world_size > 1:
            processes = partial(_processes, trainer)
            on_lost = partial(_end_with_started, trainer.global_rank, processes)
            self._meeting = Meeting(trainer.global_rank, _timeout(trainer), processes, on_lost)
        try:
            yield
        finally:
            self._has_met()

    @override
    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if num_ranks() > 1 and self._beats is None:
            store = _get_default_store().clone()  # type: ignore[attr-defined]  # torch's stub lacks it
            rank = torch.distributed.get_rank()
            self._beats = Beats(store, rank, num_ranks(), _timeout(trainer), _end)
        self._has_met()

    def _has_met(self) -> None:
        if self._meeting is not None:
            self._meeting.stop()
            self._meeting = None

    @override
    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._leave()

    @override
    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._leave()

    def _leave(self) -> None:
        if self._beats is not None:
            self._beats.stop()
            self._beats = None


class Beats:
    """Two threads: one tells the store of the processes that this one is alive and asks for the others, one watches.

    Args:
        store: Shared by the processes; for this object alone.
        rank: This process among them.
        num_ranks: How many there are.
        timeout: Seconds without an answer after which a process counts as lost.
        on_lost: Called with the lost rank and a line that says so.
    """

    def __init__(
        self, store: Store, rank: int, num_ranks: int, timeout: float, on_lost: Callable[[int, str], None]
    ) -> None:
        """Start both."""
        self._store, self._rank, self._timeout, self._on_lost = store, rank, timeout, on_lost
        self._interval = min(MOST_SECONDS_BETWEEN_BEATS, timeout / 20)
        self._seen = dict.fromkeys(range(num_ranks), time.monotonic())
        self._words = dict.fromkeys(range(num_ranks), "")
        self._lock, self._leaving, self._stopped = threading.Lock(), threading.Event(), threading.Event()
        for target in (self._tell, self._watch):
            threading.Thread(target=target, daemon=True, name="rank-watch").start()

    def stop(self) -> None:
        """Tell the others that this process ends as it should."""
        with self._lock, contextlib.suppress(torch.distributed.DistError):  # the first process may have left
            self._leaving.set()
            self._store.set(self._key(self._rank), LEFT)
        self._stopped.set()

    def _key(self, rank: int) -> str:
        return f"lightning_opd/alive/{rank}"

    def _tell(self) -> None:
        count = 0
        while not self._leaving.wait(self._interval):
            count += 1
            try:
                with self._lock:
                    if not self._leaving.is_set():
                        self._store.set(self._key(self._rank), str(count))
                for rank in self._words:
                    known = self._store.check([self._key(rank)])
                    word = self._store.get(self._key(rank)).decode() if known else ""
                    if word == LEFT or word != self._words[rank]:
                        self._words[rank], self._seen[rank] = word, time.monotonic()
            except torch.distributed.DistError:  # of the first process
                return

    def _watch(self) -> None:
        last = time.monotonic()
        while not self._stopped.wait(self._interval):
            now = time.monotonic()
            if now - last > self._timeout / 2:  # this process itself was stopped, and perhaps all of them
                self._seen = dict.fromkeys(self._seen, now)
            last = now
            # before the collective's own timeout, which begins when the others begin to wait
            late = [rank for rank, seen in self._seen.items() if now - seen > 0.9 * self._timeout]
            if late:
                lost = 0 if self._rank in late else late[0]  # the first one has the store: without it none is heard of
                line = (
                    f"rank {lost} has not answered for {now - self._seen[lost]:.0f} s (allowed are {self._timeout:.0f} "
                    "s, the strategy's `timeout` up to half an hour): it is stopped, or its machine is gone. Rank "
                    f"{self._rank} ends; go on with `--ckpt_path last`."
                )
                self._on_lost(lost, line)
                return


class Meeting:
    """A thread that waits for the processes of a run to meet: until then none can tell another that it is alive.

    Args:
        rank: This process.
        timeout: Seconds that the processes may take to meet.
        processes: Returns the process ids of other ranks on this machine, as far as they are known.
        on_lost: Called with the lost rank, -1 if it is not known, and a line that says so.
    """

    def __init__(
        self,
        rank: int,
        timeout: float,
        processes: Callable[[], Mapping[int, int]],
        on_lost: Callable[[int, str], None],
    ) -> None:
        """Start it."""
        self._rank, self._timeout, self._processes, self._on_lost = rank, timeout, processes, on_lost
        self._interval = min(MOST_SECONDS_BETWEEN_BEATS, timeout / 20)
        self._met = threading.Event()
        threading.Thread(target=self._watch, daemon=True, name="rank-meeting").start()

    def stop(self) -> None:
        """They have met, or need not any more."""
        self._met.set()

    def _watch(self) -> None:
        begin = last = time.monotonic()
        while not self._met.wait(self._interval):
            now = time.monotonic()
            if now - last > self._timeout / 2:  # this process itself was stopped
                begin = now
            last = now
            if now - begin > 0.9 * self._timeout:  # before that of the library that waits, which names nobody
                lost = next((rank for rank, process in self._processes().items() if _is_stopped(process)), -1)
                who = f"rank {lost} is stopped" if lost >= 0 else "one is stopped, or its machine is not there"
                self._on_lost(
                    lost,
                    f"the ranks have not met within {now - begin:.0f} s (the strategy's `timeout` is "
                    f"{self._timeout:.0f} s): {who}. Rank {self._rank} ends; run the same command again.",
                )
                return


def _timeout(trainer: L.Trainer) -> float:
    """Return the seconds that a strategy gives its processes, at most half an hour: none is silent for longer."""
    timeout = min(getattr(trainer.strategy, "_timeout", None) or MOST_SILENCE, MOST_SILENCE)
    return float(timeout.total_seconds())


def _processes(trainer: L.Trainer) -> dict[int, int]:
    """Return rank → process id: of those that this process has started, or of the one that has started it."""
    launcher = trainer.strategy.launcher
    if isinstance(launcher, _SubprocessScriptLauncher) and launcher.procs:
        return {trainer.global_rank + number: process.pid for number, process in enumerate(launcher.procs, start=1)}
    started_by = int(os.environ.get(LAUNCHER, "0"))
    return {0: started_by} if started_by and trainer.num_nodes == 1 else {}


def _is_stopped(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    except OSError:  # it has ended, or this is no Linux
        return False
    return state in {"T", "t"}


def _end_with_started(own: int, processes: Callable[[], Mapping[int, int]], rank: int, line: str) -> None:
    """End this process and those that it has started: one that was stopped at once could not yet ask to end with it."""
    for other, process in processes().items():
        if other > own:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
    _end(rank, line)


def _end(rank: int, line: str) -> None:
    """End this process at once: its main thread waits in a collective."""
    sys.stderr.write(f"error: {line}\n")
    sys.stderr.flush()
    os._exit(1)
