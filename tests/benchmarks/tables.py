"""Parity reports of several seeds as rows, rows as Markdown, and Markdown between a README's markers."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

RECIPES = Path(__file__).parents[2] / "recipes"


def cells(domains: dict[str, dict]) -> Iterator[tuple[str, str, str, dict]]:
    """Yield (domain, split, mode, cell)."""
    for domain, splits in sorted(domains.items()):
        for split, modes in splits.items():
            for mode, cell in modes.items():
                yield domain, split, mode, cell


def reports(runs: Path, recipe: str, seeds: Sequence[int], folder: str) -> list[dict]:
    """Read one variant's parity report of every seed."""
    return [json.loads((runs / recipe / f"seed{seed}" / folder / "parity.json").read_text()) for seed in seeds]


def pooled(reports: list[dict], models: Sequence[str]) -> list[dict[str, object]]:
    """Return one row per domain, split and mode: means over the seeds, and the lowest single parity."""
    rows = []
    for domain, split, mode, _ in cells(reports[0]["domains"]):
        same = [report["domains"][domain][split][mode] for report in reports]
        means = {model: sum(cell[model]["value"] for cell in same) / len(same) for model in models}
        row: dict[str, object] = {"domain": domain, "split": split, "mode": mode}
        row |= {model: round(value, 4) for model, value in means.items()}
        row["parity"] = round(means["student"] / means["teacher"], 4)
        row["lowest"] = round(min(cell["parity"]["value"] for cell in same), 4)
        row["n"] = [cell["n"] for cell in same]
        rows.append(row)
    return rows


def parity_table(rows: Sequence[Mapping[str, object]], others: Sequence[str]) -> str:
    """Return a variant's Markdown table; `others` are models beside student and teacher."""
    names = ["domain", "split", "mode", "student", "teacher", "**parity**", "lowest seed"]
    lines = []
    for row in rows:
        numbers = [f"{row[name]:.3f}" for name in ("student", "teacher", "lowest", *others)]
        numbers.insert(2, f"**{row['parity']:.3f}**")
        lines.append([str(row["domain"]), str(row["split"]), str(row["mode"]), *numbers])
    return markdown([*names, *(other.replace("_", " ") for other in others)], lines)


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, *rows)).replace(
        "|\n", "|\n|" + "---|" * len(head) + "\n", 1
    )


def with_tables(text: str, tables: Mapping[str, str]) -> str:
    """Return a README with each table between its markers."""
    for name, table in tables.items():
        pattern = rf"(<!-- table:{name} -->\n).*?(\n<!-- end -->)"
        text, found = re.subn(pattern, lambda m, table=table: m[1] + table + m[2], text, flags=re.DOTALL)
        assert found == 1, f"README.md has no place for the table {name}"
    return text


def commit() -> str:
    """Return the commit of the working tree."""
    return subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()


def write(recipe: str, results: Mapping[str, object], tables: Mapping[str, str]) -> None:
    """Write a recipe's `results.json` and put the tables into its README."""
    folder = RECIPES / recipe
    (folder / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    readme = folder / "README.md"
    readme.write_text(with_tables(readme.read_text(), tables))
