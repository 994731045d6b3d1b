"""The evidence of the agents' recipes: READMEs show the committed results, and the results keep the promises."""

from __future__ import annotations

import json
from typing import Any

from tests.benchmarks import merge_adapters, merge_agents, reward_hacking
from tests.benchmarks.evidence import with_table
from tests.benchmarks.merge_tiny import with_tables


def results(recipe: str) -> tuple[dict[str, Any], str]:
    folder = {module.RECIPE.name: module.RECIPE for module in (reward_hacking, merge_agents, merge_adapters)}[recipe]
    readme = (folder / "README.md").read_text(encoding="utf-8")
    return json.loads((folder / "results.json").read_text(encoding="utf-8")), readme


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


AGENTS, AGENTS_README = results("merge_agents")


def test_the_readme_of_merge_agents_shows_the_committed_results() -> None:
    assert with_tables(AGENTS_README, AGENTS) == AGENTS_README
    assert AGENTS["seeds"] == [0, 1, 2]
    assert {"command", "commit", "date"} <= AGENTS.keys()


def test_the_merged_agent_is_at_parity_with_both_experts() -> None:
    rows = AGENTS["variants"]["distribution_matching"]
    assert len(rows) == 2 * 2 * 2
    for row in rows:
        assert row["parity"] >= 0.99, row
        assert row["lowest"] >= 0.97, row
        assert min(row["n"]) >= 2048
        assert row["lowest_teacher"] >= 0.95, row
        assert row["highest_base"] <= 0.65, row
        assert row["lowest_lead"] >= 0, row
    gain = [row["student"] - max(row["average"], row["task_arithmetic"]) for row in rows]
    assert sum(gain) / len(gain) >= 0.1


def test_the_detector_is_silent_where_agents_merge_well() -> None:
    assert all(watched["alarm"] is None and watched["num_batches"] == 300 for watched in AGENTS["hack_alarms"])


ADAPTERS, ADAPTERS_README = results("merge_adapters")


def test_the_readme_of_merge_adapters_shows_the_committed_results() -> None:
    assert with_tables(ADAPTERS_README, ADAPTERS) == ADAPTERS_README
    assert ADAPTERS["seeds"] == [0, 1, 2]
    assert {"command", "commit", "date"} <= ADAPTERS.keys()


def test_the_merged_adapter_is_at_parity_with_both_experts() -> None:
    rows = ADAPTERS["variants"]["distribution_matching"]
    assert len(rows) == 2 * 2 * 2
    for row in rows:
        assert row["parity"] >= 0.99, row
        assert row["lowest"] >= 0.97, row
        assert min(row["n"]) >= 2048
        assert row["lowest_teacher"] >= 0.95, row
        assert row["highest_base"] <= 0.65, row
        assert row["lowest_lead"] >= 0, row
    gain = [row["student"] - max(row["average"], row["task_arithmetic"]) for row in rows if row["mode"] == "sampled"]
    assert sum(gain) / len(gain) >= 0.1


def test_the_detector_is_silent_where_adapters_merge_well() -> None:
    assert all(watched["alarm"] is None and watched["num_batches"] == 960 for watched in ADAPTERS["hack_alarms"])
