"""Holds one seed of `merge_tiny` or `merge_adapters` against the promises of the recipe's README."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MIN_PARITY = 0.97  # one cell of one seed; over three seeds pooled it is .99
MIN_SAMPLES = 2048
MIN_EXPERT = 0.95
MAX_BASE = 0.65
BASELINES = ("average", "task_arithmetic")
SPLITS, MODES = ("train", "test"), ("sampled", "greedy")


@dataclass(frozen=True)
class Promises:
    """What differs from recipe to recipe."""

    max_abroad: float  # an expert in another expert's domain
    min_gain: float  # over the better baseline, averaged over domains


PROMISES = {
    "merge_tiny": Promises(max_abroad=0.3, min_gain=0.1),
    "merge_adapters": Promises(max_abroad=0.6, min_gain=0.03),  # adapters forget less, and their averages keep more
}

Table = Mapping[str, Mapping[str, Mapping[str, Any]]]  # domain, split, mode


def checks(domains: Table, experts: Mapping[str, Table], promises: Promises) -> Iterator[tuple[str, bool]]:
    """Yield every promise with the numbers behind it, and whether it holds."""
    for split in SPLITS:
        for mode in MODES:
            cells = {name: splits[split][mode] for name, splits in domains.items()}
            for name, cell in cells.items():
                where = f"{name}/{split}/{mode}"
                value = {who: cell[who]["value"] for who in ("student", "teacher", "base", "parity")}
                yield f"{where}: parity {value['parity']:.3f} >= {MIN_PARITY}", value["parity"] >= MIN_PARITY
                yield f"{where}: expert {value['teacher']:.3f} >= {MIN_EXPERT}", value["teacher"] >= MIN_EXPERT
                yield f"{where}: base {value['base']:.3f} <= {MAX_BASE}", value["base"] <= MAX_BASE
                yield f"{where}: {cell['n']} samples >= {MIN_SAMPLES}", cell["n"] >= MIN_SAMPLES
                low = max(cell[baseline]["low"] for baseline in BASELINES)
                yield f"{where}: student {value['student']:.3f} >= baselines' {low:.3f}", value["student"] >= low
            mean = {
                who: sum(cell[who]["value"] for cell in cells.values()) / len(cells) for who in ("student", *BASELINES)
            }
            for expert, table in experts.items():
                for name in cells.keys() & table.keys() - {expert}:
                    abroad = table[name][split][mode]
                    text = f"{name}/{split}/{mode}: expert {expert} {abroad:.3f} <= {promises.max_abroad}"
                    yield text, abroad <= promises.max_abroad
            gain = mean["student"] - max(mean[baseline] for baseline in BASELINES)
            least = promises.min_gain
            yield f"{split}/{mode}: {gain:.3f} above the better baseline >= {least}", gain >= least


def main() -> int:
    """Print every promise and return how many are broken, as an exit code."""
    runs = Path(sys.argv[1])
    parity = json.loads((runs / "parity" / "parity.json").read_text(encoding="utf-8"))
    results = list(checks(parity["domains"], parity["experts"], PROMISES[runs.resolve().parent.name]))
    for text, holds in results:
        sys.stdout.write(f"{'ok    ' if holds else 'BROKEN'} {text}\n")
    failed = sum(not holds for _, holds in results)
    sys.stdout.write(f"{len(results) - failed} passed, {failed} failed\n")
    return 1 if failed or not parity["domains"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
