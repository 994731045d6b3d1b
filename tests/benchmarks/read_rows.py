"""Measures how long a run's prompts take to be read, and how much memory: JSONL and Parquet; 1e3, 1e5, 1e6 rows.

    python -m tests.benchmarks.read_rows FOLDER

Each file is read by a process of its own. Seconds are those of its processor, so that other processes do not count;
the memory is its peak above what it takes without rows, with the library that reads the file.
"""

from __future__ import annotations

import itertools
import json
import math
import random
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from lightning_opd.tasks import Jsonl

WORDS = ("how", "many", "apples", "does", "she", "have", "after", "buying", "seven", "more", "than", "her", "brother")
SIZES = (1_000, 100_000, 1_000_000)
FORMATS = ("jsonl", "parquet")
MEBI = 1 << 20


def rows(num_rows: int) -> Iterator[dict[str, str]]:
    """Yield questions of about 200 characters, no two of them equal."""
    source = random.Random(0)
    texts = [" ".join(source.choices(WORDS, k=36)) for _ in range(1_000)]
    for number in range(num_rows):
        text = f"{number}: {source.choice(texts)}?"
        yield {"prompt": text, "teacher": source.choice(("math", "code")), "answer": str(number)}


def write(path: Path, num_rows: int) -> None:
    """Write a file of the format that its ending names."""
    if path.suffix == ".jsonl":
        with path.open("w") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows(num_rows))
        return
    import pyarrow as pa
    import pyarrow.parquet as pq

    source = rows(num_rows)
    schema = pa.schema([(name, pa.string()) for name in ("prompt", "teacher", "answer")])
    with pq.ParquetWriter(path, schema) as writer:
        while part := list(itertools.islice(source, 100_000)):
            writer.write_table(pa.Table.from_pylist(part, schema))


def memory(name: str) -> float:
    """Return a line of the kernel's account of this process, in MiB."""
    found = re.search(rf"{name}:\s*(\d+) kB", Path("/proc/self/status").read_text())
    return float(found[1]) / 1024 if found else math.nan


def read(path: str) -> None:
    """Print seconds to the first prompt, peak memory in MiB, and seconds to go through all prompts of all splits."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak of imports is forgotten
    before = memory("VmRSS")
    start = time.process_time()
    task = Jsonl(path, split="hash")
    task.prompts("train")[0]
    first = time.process_time() - start
    num_prompts = sum(1 for split in ("train", "validation", "test") for _ in task.prompts(split))
    every = time.process_time() - start - first
    print(json.dumps([num_prompts, first, every, memory("VmHWM") - before]))  # noqa: T201  # what it is for


def main(folder: Path) -> None:
    """Write and read all files, and print the table."""
    header = "| rows | format | file (MiB) | read (s) | go through once (s) | peak memory (MiB) |"
    print(f"{header}\n|---|---|---|---|---|---|")  # noqa: T201
    for num_rows in SIZES:
        for ending in FORMATS:
            path = folder / f"rows_{num_rows}.{ending}"
            write(path, num_rows)
            printed = subprocess.run(
                [sys.executable, "-m", "tests.benchmarks.read_rows", "--read", str(path)],
                check=True,
                capture_output=True,
                text=True,
            ).stdout
            count, first, every, peak = json.loads(printed)
            assert count == num_rows
            size = path.stat().st_size / MEBI
            print(f"| {num_rows:,} | {ending} | {size:.1f} | {first:.2f} | {every:.2f} | {peak:.0f} |", flush=True)  # noqa: T201
            path.unlink()


if __name__ == "__main__":
    if sys.argv[1] == "--read":
        read(sys.argv[2])
    else:
        main(Path(sys.argv[1]))
