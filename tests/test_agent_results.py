"""The evidence of the agents' and adapters' recipes: READMEs show the results, and the results keep the promises."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.benchmarks import reward_hacking
from tests.benchmarks.evidence import RECIPES, with_table
from tests.benchmarks.merge_tiny import with_tables


def results(recipe: str) -> tuple[dict[str, Any], str]:
    readme = (RECIPES / recipe / "README.md").read_text(encoding="utf-8")
    return json.loads((RECIPES / recipe / "results.json").read_text(encoding="utf-8")), readme


HACKING, HACKING_README = results("reward_hacking")


def test_the_readme_of_reward_hacking_shows_the_committed_results() -> None:
    assert with_table(HACKING_README, "arms", reward_hacking.table(HACKING["arms"])) == HACKING_README
    assert tuple(HACKING["arms"]) == reward_hacking.ARMS
    assert {"command", "commit", "date"} <= HACKING.keys()
    assert (reward_hacking.RECIPE / "curves.png").stat().st_size > 10_000
    assert all(len(rows) == len(HACKING["seeds"]) == 3 for rows in HACKING["arms"].values())


def test_the_hack_appears_in_every_seed() -> None:
    assert min(HACKING["teacher_in_its_own_harness"]) >= 0.9, "the teacher is a good agent where it was trained"
    for row in HACKING["arms"]["none"]:
        assert row["end"] <= 0.5 * row["start"], row["end"]
        assert row["kl_end"] <= 0.7 * row["kl_start"], row["kl_end"]


def test_both_measures_together_cure_it_in_every_seed() -> None:
    for row in HACKING["arms"]["both"]:
        assert row["end"] >= 0.95 * row["start"], row["end"]


def test_the_detector_sees_the_hack_in_time_and_nothing_else() -> None:
    for row in HACKING["arms"]["none"]:
        assert row["alarm"] is not None
        assert row["alarm"] - row["halving"] <= 10
    assert all(row["alarm"] is None for row in HACKING["arms"]["both"])


MERGES = {"merge_agents": ("sampled", "greedy"), "merge_adapters": ("sampled",)}
"""Recipes, and where the student is far above both weight merges: adapters' averages are good when greedy."""


@pytest.mark.parametrize("recipe", MERGES)
def test_the_readme_of_a_merge_shows_the_committed_results(recipe: str) -> None:
    found, readme = results(recipe)
    assert with_tables(readme, found) == readme
    assert found["seeds"] == [0, 1, 2]
    assert {"command", "commit", "date"} <= found.keys()


@pytest.mark.parametrize("recipe", MERGES)
def test_the_merged_student_is_at_parity_with_both_experts(recipe: str) -> None:
    rows = results(recipe)[0]["variants"]["distribution_matching"]
    assert len(rows) == 2 * 2 * 2
    for row in rows:
        assert row["parity"] >= 0.99, row
        assert row["lowest"] >= 0.97, row
        assert min(row["n"]) >= 2048
        assert row["lowest_teacher"] >= 0.95, row
        assert row["highest_base"] <= 0.65, row
        assert row["lowest_lead"] >= 0, row
    far = [row for row in rows if row["mode"] in MERGES[recipe]]
    gain = [row["student"] - max(row["average"], row["task_arithmetic"]) for row in far]
    assert sum(gain) / len(gain) >= 0.1


@pytest.mark.parametrize(("recipe", "num_batches"), [("merge_agents", 300), ("merge_adapters", 960)])
def test_the_detector_is_silent_where_models_merge_well(recipe: str, num_batches: int) -> None:
    watched = results(recipe)[0]["hack_alarms"]
    assert len(watched) == 3
    assert all(one["alarm"] is None and one["num_batches"] == num_batches for one in watched)
