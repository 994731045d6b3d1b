"""Measures several training runs in one process tree, a step of each in turn, and prints tables."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.benchmarks.gate import MARK

ROOT = Path(__file__).resolve().parents[2]
RETURNS_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
"""Lets glibc give memory back at once, so that what is resident is what is held; slower, hence never beside times."""

Record = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """A command that stops at a gate before every step.

    Args:
        command: Program and arguments.
        environment: Beside this process's own.
        folder: Where to start it.
        is_single: Whether it has one thread, on one core; a GPU's run takes what it wants.
    """

    command: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    folder: Path = ROOT
    is_single: bool = True


class Worker:
    """A started run; each call of `step` lets it take one step.

    Args:
        run: What to start.
        log: Where its error output goes.
    """

    def __init__(self, run: Run, log: Path) -> None:
        threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"} if run.is_single else {}
        offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        self._log = log
        self._errors = log.open("w", encoding="utf-8")
        self._process = subprocess.Popen(
            run.command,
            env={**os.environ, **threads, **offline, **run.environment},
            cwd=run.folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        if run.is_single:
            with contextlib.suppress(AttributeError):  # Linux only
                os.sched_setaffinity(self._process.pid, {max(os.sched_getaffinity(0))})
        self.ready = self._answer()

    def _answer(self) -> Record:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(MARK):
                record: Record = json.loads(line.removeprefix(MARK))
                return record
        self.close()
        last = "\n".join(self._log.read_text(encoding="utf-8").splitlines()[-15:])
        msg = f"The run ended before its step: {' '.join(map(str, self._process.args))}\n{last}"  # type: ignore[arg-type]  # ours are words
        raise RuntimeError(msg)

    def step(self) -> Record:
        """Return what one step took: seconds, its parts in seconds, metrics, memory in MiB if measured."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        """End the run, wherever it is."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            if stream is not None:
                stream.close()


@contextlib.contextmanager
def started(runs: Mapping[str, Run]) -> Iterator[dict[str, Worker]]:
    """Start all runs, one after the other, and end them afterwards."""
    workers: dict[str, Worker] = {}
    with tempfile.TemporaryDirectory() as folder:
        try:
            for number, (name, run) in enumerate(runs.items()):
                workers[name] = Worker(run, Path(folder) / f"{number}.log")
            yield workers
        finally:
            for worker in workers.values():
                worker.close()


def alternate(workers: Mapping[str, Worker], repeats: int, warm_up: int = 1) -> dict[str, list[Record]]:
    """Return `repeats` records of each run, whose steps take turns; every second round in reverse order."""
    found: dict[str, list[Record]] = {name: [] for name in workers}
    for number in range(warm_up + repeats):
        for name in list(workers) if number % 2 == 0 else reversed(list(workers)):
            record = workers[name].step()
            if number >= warm_up:
                found[name].append(record)
    return found


def median(records: Sequence[Record], name: str = "seconds", part: str | None = None) -> float:
    """Return the median of a figure, or of one of the step's parts, over records."""
    return statistics.median(float(r["parts"].get(part, 0) if part else r[name]) for r in records)


def spread(records: Sequence[Record], name: str = "seconds") -> str:
    """Return the smallest and the largest of a figure, for a table."""
    values = [float(record[name]) for record in records]
    return f"{min(values):.2f}–{max(values):.2f}"


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def machine(command: str, how: str = "one thread a run") -> str:
    """Return when, where and how a table was measured, in one line.

    Args:
        command: That makes the table.
        how: Threads, or the GPU.
    """
    import torch

    cpus = Path("/proc/cpuinfo")
    lines = cpus.read_text(encoding="utf-8").splitlines() if cpus.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    processor = names[0] if names else platform.machine()
    load = f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
    today = datetime.now(UTC).date()
    return f"{today}, {processor}, {load}, torch {torch.__version__}, {how}: `{command}`"


def show(*texts: object) -> None:
    """Print what a script has found, at once."""
    sys.stdout.write(" ".join(map(str, texts)) + "\n")
    sys.stdout.flush()


def seconds_since(start: float) -> str:
    """Return how long something took, for a line of progress."""
    return f"{time.perf_counter() - start:.0f} s"
