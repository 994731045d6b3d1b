"""How much of the forwards is padding: padded ÷ real tokens in scoring and in the update, before and now.

    python -m tests.benchmarks.padding [ROWS MICRO_BATCHES]

Needs no model. "Before" is one forward over all rows in scoring, and micro-batches that long and short rows are dealt
into. One line for each distribution of lengths: mean and worst ratio over the seeds 0 to 19.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

import numpy as np

from lightning_opd.collection.collate import balanced_parts
from lightning_opd.functional.length_groups import (
    MAX_TOKENS_PER_FORWARD,
    budgeted_groups,
    neighbour_groups,
    padded_tokens,
)

SEEDS = range(20)
DISTRIBUTIONS: dict[str, Callable[[np.random.Generator, int], np.ndarray]] = {
    "uniform, 32 to 1,024": lambda rng, rows: rng.integers(32, 1025, rows),
    "log-normal, median 400, σ 0.5": lambda rng, rows: np.exp(rng.normal(np.log(400), 0.5, rows)).clip(8, 8192),
    "log-normal, median 400, σ 1.0": lambda rng, rows: np.exp(rng.normal(np.log(400), 1.0, rows)).clip(8, 8192),
    "log-normal, median 400, σ 1.2": lambda rng, rows: np.exp(rng.normal(np.log(400), 1.2, rows)).clip(8, 8192),
}


def ratios(lengths: Sequence[int], num_micro_batches: int) -> tuple[float, float, float, float]:
    """Return padded ÷ real tokens in scoring before and now, and in the update before and now."""
    everything = [list(range(len(lengths)))]
    dealt = balanced_parts(lengths, num_micro_batches)
    neighbours = [[lengths[i] for i in group] for group in neighbour_groups(lengths, num_micro_batches)]
    tokens = (
        padded_tokens(lengths, everything),
        padded_tokens(lengths, budgeted_groups(lengths, MAX_TOKENS_PER_FORWARD)),
        padded_tokens(lengths, dealt),
        sum(padded_tokens(part, budgeted_groups(part)) for part in neighbours),
    )
    first, second, third, fourth = (number / sum(lengths) for number in tokens)
    return first, second, third, fourth


def main(num_rows: int = 64, num_micro_batches: int = 8) -> None:
    """Write one line for each distribution of lengths."""
    lines = [f"{num_rows} rows, {num_micro_batches} micro-batches"]
    lines += ["| lengths | scoring before | now | update before | now | worst now |", "|---|---|---|---|---|---|"]
    for name, draw in DISTRIBUTIONS.items():
        drawn = [draw(np.random.default_rng(seed), num_rows).astype(int).tolist() for seed in SEEDS]
        found = np.array([ratios(lengths, num_micro_batches) for lengths in drawn])
        means = " | ".join(f"{mean:.2f}" for mean in found.mean(axis=0))
        lines.append(f"| {name} | {means} | {found[:, [1, 3]].max():.2f} |")
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
