"""Collects the seeds of recipes/merge_tiny into its results.json, and writes its README's tables."""

from __future__ import annotations

import datetime
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

RECIPE = Path(__file__).parents[2] / "recipes" / "merge_tiny"
RUNS = Path(os.environ.get("RUNS", "runs"))
VARIANTS = {"distribution_matching": "parity", "policy_gradient": "parity_policy_gradient", "lora": "parity_lora"}
COMMAND = "bash tests/benchmarks/merge_tiny.sh {0} && python tests/benchmarks/merge_tiny.py {0}"
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


def with_tables(text: str, results: dict) -> str:
    """Return the README with each variant's table between its markers."""
    for variant, rows in results["variants"].items():
        pattern = rf"(<!-- table:{variant} -->\n).*?(\n<!-- end -->)"
        text, found = re.subn(pattern, lambda m, rows=rows: m[1] + table(rows) + m[2], text, flags=re.DOTALL)
        assert found == 1, f"README.md has no place for the table of {variant}"
    return text


def main(seeds: list[str]) -> None:
    """Collect, write `results.json`, and put the tables into the README."""
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    reports = {
        variant: [json.loads((RUNS / f"merge_tiny/seed{seed}/{folder}/parity.json").read_text()) for seed in seeds]
        for variant, folder in VARIANTS.items()
    }
    results = {
        "command": COMMAND.format(" ".join(seeds)),
        "commit": commit,
        "date": datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
        "seeds": [int(seed) for seed in seeds],
        "experts": [report.get("experts") for report in reports["distribution_matching"]],
        "variants": {variant: pooled(parts) for variant, parts in reports.items()},
    }
    (RECIPE / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    readme = RECIPE / "README.md"
    readme.write_text(with_tables(readme.read_text(), results))


if __name__ == "__main__":
    main(sys.argv[1:])
