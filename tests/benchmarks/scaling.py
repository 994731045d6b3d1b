"""How a training step grows with tokens, vocabulary, batch, routed teachers and adapters on one base.

    python -m tests.benchmarks.scaling tokens
    python -m tests.benchmarks.scaling vocabulary
    python -m tests.benchmarks.scaling batch
    python -m tests.benchmarks.scaling teachers
    python -m tests.benchmarks.scaling adapters

The rows of a table are runs of their own, which take turns, a step each, as in `step.py`; the last column is a row's
time through that of the first. Routed teachers read the same tokens together, whatever their number.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.benchmarks.processes import Record, Worker, alternate, machine, median, seconds_since, show, started, table
from tests.benchmarks.step import ours
from tests.benchmarks.worlds import Setting, Shape, save_world

TABLES: dict[str, dict[str, Sequence[int]]] = {
    "tokens": {"new_tokens": (64, 128, 256, 512)},
    "vocabulary": {"vocabulary": (1024, 4096, 16384, 65536)},
    "batch": {"prompts": (8, 16, 32, 64)},
    "teachers": {"teachers": (1, 2, 4, 8)},
    "adapters": {"teachers": (1, 2, 4, 8)},
}


def main() -> None:
    """Measure one table and print it."""
    arguments = parser().parse_args()
    started_at = time.perf_counter()
    ((name, values),) = TABLES[arguments.table].items()
    with tempfile.TemporaryDirectory() as folder:
        base = Setting(
            folder,
            steps=arguments.repeats + 2,
            prompts=arguments.prompts,
            new_tokens=arguments.new_tokens,
            vocabulary=arguments.vocabulary,
            lora=arguments.table == "adapters",
            adapters=arguments.table == "adapters",
        )
        settings = {}
        for value in arguments.values or values:
            changes: dict[str, Any] = {name: value, "folder": str(Path(folder) / str(value))}
            setting = dataclasses.replace(base, **changes)
            save_world(setting, Shape(layers=arguments.layers, width=arguments.width))
            settings[str(value)] = setting
        with started({value: ours(setting) for value, setting in settings.items()}) as workers:
            found = alternate(workers, arguments.repeats)
            rows = rows_of(found, workers)
    show(machine("python -m tests.benchmarks.scaling " + " ".join(sys.argv[1:])) + f" ({seconds_since(started_at)})\n")
    head = [name.replace("_", " "), "s per step", "rollout", "score", "processor (s)", "weights (MiB)"]
    show(table([*head, "÷ first", "processor ÷ first"], rows))


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("table", choices=TABLES)
    made.add_argument("--values", type=int, nargs="*", help="other rows than the usual ones")
    made.add_argument("--repeats", type=int, default=5)
    made.add_argument("--prompts", type=int, default=16)
    made.add_argument("--new-tokens", type=int, default=64)
    made.add_argument("--vocabulary", type=int, default=4096)
    made.add_argument("--layers", type=int, default=4)
    made.add_argument("--width", type=int, default=256)
    return made


def rows_of(found: dict[str, list[Record]], workers: dict[str, Worker]) -> list[list[object]]:
    """Return a row for each run: seconds, parts, the size of all weights, and the time through the first run's."""
    first = next(iter(found.values()))
    rows: list[list[object]] = []
    for value, records in found.items():
        ratios = [f"{median(records, f) / median(first, f):.2f}" for f in ("seconds", "processor")]
        parts = [f"{median(records, part=part):.2f}" for part in ("rollout", "score")]
        weights = f"{workers[value].ready['weight_mib']:.1f}"
        seconds, processor = (f"{median(records, f):.2f}" for f in ("seconds", "processor"))
        rows.append([value, seconds, *parts, processor, weights, *ratios])
    return rows


if __name__ == "__main__":
    main()
