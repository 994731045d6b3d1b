"""Lets another process release training steps one at a time, and tells it what each of them took.

Needs nothing of this repository: a copy of this file measures any commit of it.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import lightning as L

MARK = "@step "
"""Lines of the answers; everything else that a trainer prints is skipped."""


class Gate:
    """Two-way line to the process that measures.

    Args:
        measures_memory: Whether each answer has the peak memory since the last `mark` (Linux).
    """

    def __init__(self, *, measures_memory: bool = False) -> None:
        self.measures_memory = measures_memory
        self.parts: dict[str, float] = {}
        self._started = self._processor = self._resident = 0.0

    def wait(self, **more: Any) -> None:
        """Answer for the step that has just ended, and wait until the next one may start; without one, end.

        Answers the step's `seconds`, those of the `processor`, and its `parts`; where memory is measured, also what
        was `resident` before the step and the `peak` since `mark` (MiB).
        """
        seconds, processor = time.perf_counter() - self._started, time.process_time() - self._processor
        record = {"seconds": seconds, "processor": processor, "parts": self.parts, **more}
        if self.measures_memory:
            record |= {"resident": self._resident, "peak": _status("VmHWM")}
        sys.stdout.write(MARK + json.dumps(record) + "\n")
        sys.stdout.flush()
        if not sys.stdin.readline():
            os._exit(0)  # the measuring process is gone
        self.parts = {}
        if self.measures_memory:
            self._resident = _status("VmRSS")
        self._started, self._processor = time.perf_counter(), time.process_time()

    def mark(self) -> None:
        """Begin to watch the peak of the memory."""
        if self.measures_memory:
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _status(name: str) -> float:
    """Return a figure of this process in MiB."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) / 1024


class StepGate(L.Callback):
    """Stops before every optimiser step of a Lightning run until it is released.

    Args:
        gate: By default a new one.
        record: More of the first answer.
    """

    def __init__(self, gate: Gate | None = None, record: dict[str, Any] | None = None) -> None:
        self.gate, self.record = gate or Gate(), record or {}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.gate.wait(**self.record)

    def on_train_batch_end(self, trainer: L.Trainer, *arguments: Any, **more: Any) -> None:
        if (trainer.fit_loop.total_batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            metrics = {}
            for name, value in trainer.callback_metrics.items():
                with contextlib.suppress(TypeError, ValueError):
                    metrics[name] = float(value)
            self.gate.wait(metrics=metrics | self.figures())

    def figures(self) -> dict[str, float]:
        """Return what else there is to say about a step."""
        return {}
