"""Collects the seeds of recipes/merge_tiny into its results.json, and writes its README's tables."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.benchmarks.record import RECIPES, provenance, record

RECIPE = RECIPES / "merge_tiny"
RUNS = Path(os.environ.get("RUNS", "runs"))
VARIANTS = {"distribution_matching": "parity", "policy_gradient": "parity_policy_gradient", "lora": "parity_lora"}
COMMAND = "bash tests/benchmarks/merge_tiny.sh {0} && python -m tests.benchmarks.merge_tiny {0}"
MODELS = ("student", "teacher", "base", "average", "task_arithmetic")


def cells(domains: dict[str, dict]) -> Iterator[tuple[str, str, str, dict]]:
    """Yield (domain, split, mode, cell)."""
    for domain, splits in sorted(domains.items()):
        for split, modes in splits.items():
            for mode, cell in modes.items():
                yield domain, split, mode, cell


def pooled(reports: list[dict]) -> list[dict[str, object]]:
    """Return one row per domain, split and mode: means over the seeds, and the lowest single parity."""
    rows = []
    for domain, split, mode, _ in cells(reports[0]["domains"]):
        same = [report["domains"][domain][split][mode] for report in reports]
        means = {model: sum(cell[model]["value"] for cell in same) / len(same) for model in MODELS}
        row: dict[str, object] = {"domain": domain, "split": split, "mode": mode}
        row |= {model: round(value, 4) for model, value in means.items()}
        row["parity"] = round(means["student"] / means["teacher"], 4)
        row["lowest"] = round(min(cell["parity"]["value"] for cell in same), 4)
        row["n"] = [cell["n"] for cell in same]
        rows.append(row)
    return rows


def table(rows: list[dict[str, object]]) -> str:
    """Return a variant's Markdown table."""
    lines = [
        "| domain | split | mode | student | teacher | **parity** | lowest seed | base | average | task arithmetic |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        numbers = [
            f"{row[name]:.3f}" for name in ("student", "teacher", "lowest", "base", "average", "task_arithmetic")
        ]
        numbers.insert(2, f"**{row['parity']:.3f}**")
        lines.append(f"| {' | '.join([str(row['domain']), str(row['split']), str(row['mode']), *numbers])} |")
    return "\n".join(lines)


def tables(results: dict) -> dict[str, str]:
    """Return each variant's table."""
    return {variant: table(rows) for variant, rows in results["variants"].items()}


def main(seeds: list[str]) -> None:
    """Collect, write `results.json`, and put the tables into the README."""
    reports = {
        variant: [json.loads((RUNS / f"merge_tiny/seed{seed}/{folder}/parity.json").read_text()) for seed in seeds]
        for variant, folder in VARIANTS.items()
    }
    results = {
        **provenance(COMMAND.format(" ".join(seeds))),
        "seeds": [int(seed) for seed in seeds],
        "experts": [report.get("experts") for report in reports["distribution_matching"]],
        "variants": {variant: pooled(parts) for variant, parts in reports.items()},
    }
    record(RECIPE, results, tables(results))


if __name__ == "__main__":
    main(sys.argv[1:])
