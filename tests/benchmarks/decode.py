"""Seconds of a decode step with the weights as they are, and prepacked in oneDNN's order.

    OMP_NUM_THREADS=1 python -m tests.benchmarks.decode [MODEL]

One forward of one token a row, without a cache, of a model from a folder (in float32) or of `rollout.py`'s random one.
Both forms take turns; medians are shown, and the seconds in which the weights are copied.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from lightning_opd.models.prepacking import BREAK_EVEN_STEPS, prepacked
from tests.benchmarks.processes import machine, show, table
from tests.benchmarks.rollout import student

ROWS = (1, 4, 16, 64)


def main() -> None:
    """Print the milliseconds by number of rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", help="folder of a causal language model")
    parser.add_argument("--repeats", type=int, default=9)
    own = parser.parse_args()
    torch.set_num_threads(1)
    model = student() if own.model is None else AutoModelForCausalLM.from_pretrained(own.model, dtype=torch.float32)
    times: dict[tuple[int, bool], list[float]] = {(rows, packs): [] for rows in ROWS for packs in (False, True)}
    copies = []
    with torch.no_grad():
        for _ in range(own.repeats):
            for rows in ROWS:
                times[rows, False].append(_step(model, rows))
            start = time.perf_counter()
            with prepacked(model, BREAK_EVEN_STEPS):
                copies.append(time.perf_counter() - start)
                for rows in ROWS:
                    times[rows, True].append(_step(model, rows))
    show(machine("python -m tests.benchmarks.decode " + " ".join(sys.argv[1:])) + "\n")
    plain, packed = ([1e3 * statistics.median(times[rows, packs]) for rows in ROWS] for packs in (False, True))
    found = zip(ROWS, plain, packed, strict=True)
    show(
        table(
            ["rows", "ms", "prepacked, ms", "ratio"], [[n, f"{a:.1f}", f"{b:.1f}", f"{b / a:.2f}"] for n, a, b in found]
        )
    )
    show(f"\nThe copy takes {1e3 * statistics.median(copies):.0f} ms.")


def _step(model: PreTrainedModel, rows: int) -> float:
    """Return the seconds of the faster of two forwards."""
    token_ids = torch.arange(1, rows + 1)[:, None]
    taken = []
    for _ in range(2):
        start = time.perf_counter()
        model(input_ids=token_ids, use_cache=False)
        taken.append(time.perf_counter() - start)
    return min(taken)


if __name__ == "__main__":
    main()
