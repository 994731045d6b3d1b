"""Ends a run in which a process no longer answers, and names it."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta

import lightning as L  # Lightning's own convention
import torch
from lightning.pytorch.callbacks import Callback
from torch.distributed.distributed_c10d import Store, _get_default_store
from typing_extensions import override

from lightning_opd.models import num_ranks

MOST_SECONDS_BETWEEN_BEATS = 5.0
LEFT = "left"


class RankWatch(Callback):
    """End this process when another one of the run has not answered for the strategy's `timeout`, and say which.

    A collective alone would wait for a process that is stopped, swapped out or on a machine that is gone, and then
    say only that it has waited. Each process tells the others twenty times per `timeout` that it is alive. The
    command line adds this callback by itself.
    """

    def __init__(self) -> None:
        """Wait for the processes to meet."""
        self._beats: Beats | None = None

    @override
    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if num_ranks() > 1 and self._beats is None:
            timeout = getattr(trainer.strategy, "_timeout", None) or timedelta(minutes=30)
            store = _get_default_store().clone()  # type: ignore[attr-defined]  # torch's stub lacks it
            rank = torch.distributed.get_rank()
            self._beats = Beats(store, rank, num_ranks(), timeout.total_seconds(), _end)

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
                    f"rank {lost} has not answered for {now - self._seen[lost]:.0f} s (the strategy's `timeout` is "
                    f"{self._timeout:.0f} s): it is stopped, or its machine is gone. Rank {self._rank} ends; go on "
                    "with `--ckpt_path last`."
                )
                self._on_lost(lost, line)
                return


def _end(rank: int, line: str) -> None:
    """End this process at once: its main thread waits in a collective."""
    sys.stderr.write(f"error: {line}\n")
    sys.stderr.flush()
    os._exit(1)
