"""Collects the seeds of recipes/merge_tiny into its results.json, and writes its README's tables."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.benchmarks.evidence import RECIPES, RUNS, provenance, with_table, write

RECIPE = RECIPES / "merge_tiny"
VARIANTS = {"distribution_matching": "parity", "policy_gradient": "parity_policy_gradient", "lora": "parity_lora"}
SERVED = {"served": "parity_served"}
COMMAND = "python -m tests.benchmarks.merge_variants {0} && python -m tests.benchmarks.merge_tiny {0}"
SERVED_COMMAND = (
    "python -m tests.benchmarks.merge_variants {0} --variants served --vllm vllm/bin/python && "
    "python -m tests.benchmarks.merge_tiny {0} --served"
)
BASELINES = ("average", "task_arithmetic")
MODELS = ("student", "teacher", "base", *BASELINES)


def cells(domains: dict[str, dict[str, Any]]) -> Iterator[tuple[str, str, str, dict[str, Any]]]:
    """Yield (domain, split, mode, cell)."""
    for domain, splits in sorted(domains.items()):
        for split, modes in splits.items():
            for mode, cell in modes.items():
                yield domain, split, mode, cell


def pooled(reports: list[dict[str, Any]]) -> list[dict[str, object]]:
    """Return one row per domain, split and mode: means over the seeds, and the worst single seed of each promise."""
    rows = []
    for domain, split, mode, _ in cells(reports[0]["domains"]):
        same = [report["domains"][domain][split][mode] for report in reports]
        models = [model for model in MODELS if all(model in cell for cell in same)]
        means = {model: sum(cell[model]["value"] for cell in same) / len(same) for model in models}
        row: dict[str, object] = {"domain": domain, "split": split, "mode": mode}
        row |= {model: round(value, 4) for model, value in means.items()}
        row["parity"] = round(means["student"] / means["teacher"], 4)
        row["lowest"] = round(min(cell["parity"]["value"] for cell in same), 4)
        row["lowest_teacher"] = round(min(cell["teacher"]["value"] for cell in same), 4)
        row["highest_base"] = round(max(cell["base"]["value"] for cell in same), 4)
        if set(BASELINES) <= set(models):
            row["lowest_lead"] = round(min(_lead(cell) for cell in same), 4)
        row["n"] = [cell["n"] for cell in same]
        rows.append(row)
    return rows


def _lead(cell: dict[str, Any]) -> float:
    """Return how far the student is above the lower end of the better baseline's interval."""
    return float(cell["student"]["value"] - max(cell[name]["low"] for name in BASELINES))


def table(rows: list[dict[str, object]]) -> str:
    """Return a variant's Markdown table."""
    others = [model for model in ("base", *BASELINES) if model in rows[0]]
    head = ["domain", "split", "mode", "student", "teacher", "**parity**", "lowest seed"]
    lines = [[*head, *(model.replace("_", " ") for model in others)]]
    for row in rows:
        numbers = [f"{row[name]:.3f}" for name in ("student", "teacher", "lowest", *others)]
        numbers.insert(2, f"**{row['parity']:.3f}**")
        lines.append([str(row["domain"]), str(row["split"]), str(row["mode"]), *numbers])
    text = [f"| {' | '.join(line)} |" for line in lines]
    return "\n".join([text[0], "|" + "---|" * len(lines[0]), *text[1:]])


def with_tables(text: str, results: dict[str, Any]) -> str:
    """Return the README with each variant's table between its markers."""
    for variant, rows in results["variants"].items():
        text = with_table(text, variant, table(rows))
    return text


def alarm(merge: Path) -> dict[str, int | None]:
    """Return how many rollout batches of a merge `HackDetector` watched, and in which it raised an alarm, if in any."""
    import torch

    state = torch.load(merge / "checkpoints/last.ckpt", weights_only=True)["callbacks"]["HackDetector"]
    return {"num_batches": state["_num_batches"], "alarm": state["alarm_batch"]}


def collect(recipe: Path, command: str, variants: dict[str, str], seeds: list[str], name: str = "results") -> None:
    """Collect a merging recipe's parity reports, one per variant and seed, and write NAME.json and README."""
    reports = {
        variant: [json.loads((RUNS / recipe.name / f"seed{seed}/{folder}/parity.json").read_text()) for seed in seeds]
        for variant, folder in variants.items()
    }
    merge = "merge" if "parity" in variants.values() else next(iter(variants))
    results = {
        **provenance(command, seeds),
        "hack_alarms": [alarm(RUNS / recipe.name / f"seed{seed}" / merge) for seed in seeds],
        "experts": [report.get("experts") for report in reports[next(iter(variants))]],
        "variants": {variant: pooled(parts) for variant, parts in reports.items()},
    }
    write(recipe, results, with_tables((recipe / "README.md").read_text(), results), name)


def collect_recipe(name: str) -> None:
    """Collect the seeds of the command line of a recipe that has one variant."""
    command = (
        f"for seed in {{0}}; do python -m lightning_opd run recipes/{name} --seed $seed; done; "
        f"python -m tests.benchmarks.{name} {{0}}"
    )
    collect(RECIPES / name, command, {"distribution_matching": "parity"}, sys.argv[1:])


if __name__ == "__main__":
    seeds = [word for word in sys.argv[1:] if word.isdigit()]
    if "--served" in sys.argv:
        collect(RECIPE, SERVED_COMMAND, SERVED, seeds, "served")
    else:
        collect(RECIPE, COMMAND, VARIANTS, seeds)
