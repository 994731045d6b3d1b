"""The front pages: each number is that of a committed result, each link and each named test exists."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from recipes.estimators.tables import curves_of, mean

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
RECIPES = sorted(path.parent.name for path in (ROOT / "recipes").glob("*/recipe.yaml"))
PAGES = ("README.md", ".github/CONTRIBUTING.md", ".github/THEORY.md")


def results(recipe: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((ROOT / "recipes" / recipe / "results.json").read_text(encoding="utf-8"))
    return found


def row_of(recipe: str) -> str:
    """Return the line of the README's table of recipes."""
    rows = [line for line in README.splitlines() if line.startswith(f"| [{recipe}](recipes/{recipe}/README.md) |")]
    assert len(rows) == 1, f"README.md needs one row for recipes/{recipe}"
    return rows[0]


def number(value: float, digits: int = 3) -> str:
    """Return a fraction as the README prints it: .582."""
    return f"{value:.{digits}f}".removeprefix("0")


def parity(rows: list[dict[str, Any]]) -> list[str]:
    assert len(rows) == 2 * 2 * 2
    assert {n for row in rows for n in row["n"]} == {2048}
    return [f"parity ≥ {number(min(row['parity'] for row in rows), 4)} in all eight cells", "n = 2,048"]


def spread(rows: list[dict[str, Any]]) -> list[str]:
    assert {row["n"] for row in rows} == {256}
    assert len(rows) == 6
    found = [row["parity_value"] for row in rows]
    assert sum(value >= 0.95 for value in found) == 5
    return [f"parity {number(min(found))} to {max(found):.3f} in six cells", "n = 256", "at least .95 in five of them"]


def hacking(arms: dict[str, list[dict[str, Any]]]) -> list[str]:
    def change(arm: str) -> str:
        return " → ".join(number(mean([row[when] for row in arms[arm]])) for when in ("start", "end"))

    return [f"{change('none')} without measures", f"{change('both')} with both"]


def training(ledger: dict[str, Any]) -> list[str]:
    def solved(arm: str, step: int) -> str:
        return number(mean([curve[step]["reward"] for curve in curves_of(ledger, arm)]))

    return [
        f"from {solved('reverse KL', 0)}",
        f"reverse KL {solved('reverse KL', -1)}",
        f"supervised on teacher samples {solved('supervised on teacher samples', -1)}",
        f"immediate {solved('immediate', -1)}",
        f"GRPO without a teacher {solved('GRPO, no teacher', -1)}",
    ]


CLAIMS = {
    "merge_tiny": parity(results("merge_tiny")["variants"]["distribution_matching"]),
    "merge_adapters": parity(results("merge_adapters")["variants"]["distribution_matching"]),
    "merge_smollm2": spread(results("merge_smollm2")["rows"]),
    "merge_agents": parity(results("merge_agents")["variants"]["distribution_matching"]),
    "cross_tokenizer": parity(results("cross_tokenizer")["parity"]),
    "reward_hacking": hacking(results("reward_hacking")["arms"]),
    "estimators": training(results("estimators")["convergence"]),
}


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_has_a_row_with_its_command_and_its_numbers(recipe: str) -> None:
    row = row_of(recipe)
    assert f"`python -m lightning_opd run recipes/{recipe}`" in row
    for claim in CLAIMS[recipe]:
        assert claim in row


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_to_a_file(page: str) -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", (ROOT / page).read_text(encoding="utf-8"))
    assert links
    missing = [link for link in links if not (ROOT / page).parent.joinpath(link).exists()]
    assert not missing


def test_the_theory_names_files_and_tests_that_exist() -> None:
    theory = (ROOT / ".github/THEORY.md").read_text(encoding="utf-8")
    paths = set(re.findall(r"`((?:lightning_opd|tests)/[\w./]+)(?:::\w+)?`", theory))
    assert len(paths) > 20
    assert not [path for path in paths if not (ROOT / path).exists()]
    tests = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    names = set(re.findall(r"::(test_\w+)`", theory))
    assert len(names) > 10
    assert not [name for name in names if f"def {name}(" not in tests]
