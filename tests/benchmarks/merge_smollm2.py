"""Collects one seed of recipes/merge_smollm2 into its results.json, and writes its tables in both READMEs."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from lightning_opd.analysis.curves import read_curves
from tests.benchmarks.evidence import RECIPES, RUNS, provenance, with_table, write
from tests.benchmarks.merge_tiny import cells

RECIPE = RECIPES / "merge_smollm2"
FRONT = RECIPES.parent / "README.md"
OTHERS = ("base", "average", "task_arithmetic", "ties", "multitask")
STARTS = {"base": "merge", "average": "merge_from_average", "task_arithmetic": "merge_from_task_arithmetic"}
COMMAND = "python -m lightning_opd run recipes/merge_smollm2 --seed {0}; python -m tests.benchmarks.merge_smollm2 {0}"


def rows_of(report: dict[str, Any]) -> list[dict[str, Any]]:
    """Return one row per domain and mode: the mean reward of every model on the same questions."""
    rows = []
    for domain, split, mode, cell in cells(report["domains"]):
        row = {"domain": domain, "split": split, "mode": mode, "n": cell["n"]}
        row |= {name: round(cell[name]["value"], 4) for name in ("teacher", "student", *OTHERS)}
        row |= {f"parity_{end}": round(cell["parity"][end], 4) for end in ("value", "low", "high")}
        starts = {start: cell["student" if run == "merge" else run]["value"] for start, run in STARTS.items()}
        row["from"] = {start: round(value, 4) for start, value in starts.items()}
        rows.append(row)
    return rows


def learned(logs: Path, quantity: str) -> dict[str, list[list[float]]]:
    """Return each task's curve on validation prompts, sampled: [rollout batches, value]."""
    start = f"val/{quantity}/"
    curves = {curve.tag.removeprefix(start): curve for curve in read_curves(logs) if curve.tag.startswith(start)}
    return {
        task: [[step + 1, round(value, 4)] for step, value in zip(curve.steps, curve.values, strict=True)]
        for task, curve in curves.items()
    }


def main_table(rows: list[dict[str, Any]]) -> str:
    """Return the table of all models."""
    names = ("expert", "merged", "**parity** [95 %]", *(name.replace("_", " ") for name in OTHERS))
    lines = ["| task | mode | " + " | ".join(names) + " |", "|---|---|" + "---|" * len(names)]
    for row in rows:
        parity = f"**{row['parity_value']:.3f}** [{row['parity_low']:.2f}, {row['parity_high']:.2f}]"
        numbers = [f"{row['teacher']:.3f}", f"{row['student']:.3f}", parity, *(f"{row[name]:.3f}" for name in OTHERS)]
        lines.append(f"| {row['domain']} | {row['mode']} | {' | '.join(numbers)} |")
    return "\n".join(lines)


def front_table(rows: list[dict[str, Any]]) -> str:
    """Return the table of the project's front page: greedy replies only."""
    names = (
        "base",
        "expert",
        "**merged**",
        "**parity** [95 %]",
        "average",
        "task arithmetic",
        "TIES",
        "multi-task training",
    )
    lines = ["| task | " + " | ".join(names) + " |", "|---|" + "---|" * len(names)]
    for row in (row for row in rows if row["mode"] == "greedy"):
        parity = f"**{row['parity_value']:.3f}** [{row['parity_low']:.2f}, {row['parity_high']:.2f}]"
        own = [f"{row['base']:.2f}", f"{row['teacher']:.2f}", f"**{row['student']:.2f}**", parity]
        others = [f"{row[name]:.2f}" for name in ("average", "task_arithmetic", "ties", "multitask")]
        lines.append(f"| {row['domain'].replace('_', ' ')} | {' | '.join([*own, *others])} |")
    return "\n".join(lines)


def starts_table(rows: list[dict[str, Any]]) -> str:
    """Return the table of the three starts: each merged adapter's parity with the expert."""
    heads = [
        f"from the {start.replace('_', ' ')}" if start != "task_arithmetic" else "from task arithmetic"
        for start in STARTS
    ]
    lines = ["| task | mode | " + " | ".join(heads) + " |", "|---|---|" + "---|" * len(STARTS)]
    for row in rows:
        numbers = [f"{row['from'][start] / row['teacher']:.3f}" for start in STARTS]
        lines.append(f"| {row['domain']} | {row['mode']} | {' | '.join(numbers)} |")
    return "\n".join(lines)


def curves_table(curves: dict[str, dict[str, list[list[float]]]]) -> str:
    """Return the table of a quantity on validation prompts: a line for each start and task, a column for each step."""
    steps = sorted({int(step) for tasks in curves.values() for points in tasks.values() for step, _ in points})
    lines = ["| start | task | " + " | ".join(f"{step}" for step in steps) + " |", "|---|---|" + "---|" * len(steps)]
    for start, tasks in curves.items():
        for task, points in sorted(tasks.items()):
            values = {int(step): f"{value:.2f}" for step, value in points}
            cells_of_row = " | ".join(values.get(step, "") for step in steps)
            lines.append(f"| {start.replace('_', ' ')} | {task} | {cells_of_row} |")
    return "\n".join(lines)


def with_tables(text: str, results: dict[str, Any]) -> str:
    """Return the recipe's README with its tables."""
    text = with_table(text, "models", main_table(results["rows"]))
    text = with_table(text, "starts", starts_table(results["rows"]))
    for quantity in ("curves", "kl"):
        text = with_table(text, quantity, curves_table(results[quantity]))
    return text


def collect(seed: str) -> None:
    """Write results.json and the README from a whole run."""
    folder = RUNS / "merge_smollm2" / f"seed{seed}"
    report = json.loads((folder / "parity/parity.json").read_text(encoding="utf-8"))
    markers = {path.parent.name: json.loads(path.read_text(encoding="utf-8")) for path in folder.glob("*/step.json")}
    results = {
        **provenance(COMMAND, [seed]),
        "minutes": {name: round(marker["seconds"] / 60, 1) for name, marker in sorted(markers.items())},
        "rows": rows_of(report),
        "experts": report["experts"],
        "curves": {start: learned(folder / run / "logs", "reward") for start, run in STARTS.items()},
        "kl": {start: learned(folder / run / "logs", "teacher_kl") for start, run in STARTS.items()},
    }
    write(RECIPE, results, with_tables((RECIPE / "README.md").read_text(encoding="utf-8"), results))
    front = FRONT.read_text(encoding="utf-8")
    FRONT.write_text(with_table(front, "merge_smollm2", front_table(results["rows"])), encoding="utf-8")


if __name__ == "__main__":
    collect(sys.argv[1])
