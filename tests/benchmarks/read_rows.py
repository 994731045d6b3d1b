"""Measures how long a run's prompts take to be read, and how much memory: JSONL, Parquet, CSV; 1e3, 1e5, 1e6 rows.

    python tests/benchmarks/read_rows.py FOLDER

Each file is read by a process of its own. The memory is its peak above what it takes without rows.
"""

from __future__ import annotations

import csv
import json
import random
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from lightning_opd.tasks import Jsonl

WORDS = ("how", "many", "apples", "does", "she", "have", "after", "buying", "seven", "more", "than", "her", "brother")
SIZES = (1_000, 100_000, 1_000_000)
FORMATS = ("jsonl", "parquet", "csv")
COLUMNS = ("prompt", "teacher", "answer")
MEBI = 1 << 20


def rows(num_rows: int) -> Iterator[dict[str, str]]:
    """Yield questions of about 200 characters, no two of them equal."""
    source = random.Random(0)
    for number in range(num_rows):
        words = " ".join(source.choices(WORDS, k=36))
        yield {"prompt": f"{number}: {words}?", "teacher": source.choice(("math", "code")), "answer": str(number)}


def write(path: Path, num_rows: int) -> None:
    """Write a file of a format that its ending names."""
    if path.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(list(rows(num_rows))), path)
        return
    with path.open("w", newline="") as file:
        if path.suffix == ".csv":
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(rows(num_rows))
        else:
            file.writelines(json.dumps(row) + "\n" for row in rows(num_rows))


def read(path: str) -> None:
    """Print seconds to the first prompt, peak memory in MiB, and seconds to go through all prompts of all splits."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    task = Jsonl(path, split="hash")
    task.prompts("train")[0]
    first = time.perf_counter() - start
    num_prompts = sum(1 for split in ("train", "validation", "test") for _ in task.prompts(split))
    every = time.perf_counter() - start - first
    memory = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(json.dumps([num_prompts, first, every, memory]))  # noqa: T201  # what it is for


def main(folder: Path) -> None:
    """Write and read all files, and print the table."""
    header = "| rows | format | file (MiB) | read (s) | go through once (s) | peak memory (MiB) |"
    print(f"{header}\n|---|---|---|---|---|---|")  # noqa: T201
    for num_rows in SIZES:
        for ending in FORMATS:
            path = folder / f"rows_{num_rows}.{ending}"
            write(path, num_rows)
            printed = subprocess.run(
                [sys.executable, __file__, "--read", str(path)], check=True, capture_output=True, text=True
            ).stdout
            count, first, every, memory = json.loads(printed)
            assert count == num_rows
            size = path.stat().st_size / MEBI
            print(f"| {num_rows:,} | {ending} | {size:.1f} | {first:.2f} | {every:.2f} | {memory:.0f} |", flush=True)  # noqa: T201
            path.unlink()


if __name__ == "__main__":
    if sys.argv[1] == "--read":
        read(sys.argv[2])
    else:
        main(Path(sys.argv[1]))
