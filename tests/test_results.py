"""The recipes' READMEs show the tables of the committed results, and the results keep the recipes' promises."""

from __future__ import annotations

import json

import pytest

from tests.benchmarks import cross_tokenizer, merge_smollm2, teacher_balance
from tests.benchmarks.evidence import with_table
from tests.benchmarks.merge_tiny import RECIPE, VARIANTS, with_tables

RESULTS = json.loads((RECIPE / "results.json").read_text(encoding="utf-8"))


def test_the_readme_of_merge_tiny_shows_the_committed_results() -> None:
    readme = (RECIPE / "README.md").read_text(encoding="utf-8")
    assert with_tables(readme, RESULTS) == readme
    assert set(RESULTS["variants"]) == set(VARIANTS)
    assert RESULTS["seeds"] == [0, 1, 2]
    assert {"command", "commit", "date"} <= RESULTS.keys()


@pytest.mark.parametrize("variant", ["distribution_matching", "lora"])
def test_the_merged_student_is_at_parity_with_every_teacher(variant: str) -> None:
    rows = RESULTS["variants"][variant]
    assert len(rows) == 2 * 2 * 2
    for row in rows:
        assert row["parity"] >= 0.99, row
        assert row["lowest"] >= 0.97, row
        assert min(row["n"]) >= 2048
        assert row["lowest_teacher"] >= 0.95
        assert row["highest_base"] <= 0.65
        assert row["lowest_lead"] >= 0
    gain = [row["student"] - max(row["average"], row["task_arithmetic"]) for row in rows]
    assert sum(gain) / len(gain) >= 0.1


def test_the_merge_through_servers_is_at_parity_with_every_teacher() -> None:
    served = json.loads((RECIPE / "served.json").read_text(encoding="utf-8"))
    readme = (RECIPE / "README.md").read_text(encoding="utf-8")
    assert with_tables(readme, served) == readme
    assert {"command", "commit", "date"} <= served.keys()
    rows = served["variants"]["served"]
    assert len(rows) == 2 * 2 * 2
    for row in rows:
        assert row["parity"] >= 0.97, row
        assert min(row["n"]) >= 2048


def test_the_readme_of_merge_smollm2_shows_the_committed_results() -> None:
    results = json.loads((merge_smollm2.RECIPE / "results.json").read_text(encoding="utf-8"))
    readme = (merge_smollm2.RECIPE / "README.md").read_text(encoding="utf-8")
    assert merge_smollm2.with_tables(readme, results) == readme
    after_60 = results["divergence_after_60_batches"]["teacher_kl on validation prompts"]
    reverse, forward = (f"{after_60[name]:.2f}".removeprefix("0") for name in ("reverse", "forward"))
    assert f"was {reverse} by the reverse and {forward} by the forward divergence" in readme
    front = merge_smollm2.FRONT.read_text(encoding="utf-8")
    assert with_table(front, "merge_smollm2", merge_smollm2.front_table(results["rows"])) == front
    assert {"command", "commit", "date", "minutes"} <= results.keys()
    for row in results["rows"]:
        assert row["teacher"] >= row["base"] + 0.3
        assert row["student"] > max(row["average"], row["task_arithmetic"], row["ties"])


def test_balance_brings_the_short_domain_to_parity_where_it_falls_short_without() -> None:
    results = json.loads(teacher_balance.RESULTS.read_text(encoding="utf-8"))
    readme = teacher_balance.README.read_text(encoding="utf-8")
    assert with_table(readme, "balance", teacher_balance.markdown(results)) == readme
    assert {"command", "commit", "date"} <= results.keys()
    short = {(row["arm"], row["seed"]): row["parity"] for row in results["rows"] if row["domain"] == "short"}
    assert len(short) == 2 * 3
    assert min(parity for (arm, _), parity in short.items() if arm == "balanced") >= 0.99
    assert sum(parity for (arm, _), parity in short.items() if arm == "unbalanced") / 3 < 0.95


def test_the_detector_of_reward_hacking_is_silent_where_models_merge_well() -> None:
    assert len(RESULTS["hack_alarms"]) == 3
    assert all(watched["alarm"] is None and watched["num_batches"] == 360 for watched in RESULTS["hack_alarms"])


def test_the_readme_of_cross_tokenizer_shows_the_committed_results() -> None:
    folder = cross_tokenizer.RECIPE
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    readme = (folder / "README.md").read_text(encoding="utf-8")
    assert cross_tokenizer.with_tables(readme, results) == readme
    assert {"command", "commit", "date", "made_by"} <= results.keys()


def test_a_student_is_at_parity_with_a_teacher_of_another_tokenizer() -> None:
    results = json.loads((cross_tokenizer.RECIPE / "results.json").read_text(encoding="utf-8"))
    assert results["seeds"] == [0, 1, 2]
    rows = [row for row in results["parity"] if row["domain"] == "arithmetic"]
    assert len(rows) == 2 * 2
    for row in rows:
        assert row["parity"] >= 0.99, row
        assert row["lowest"] >= 0.97, row
        assert min(row["n"]) >= 2048


def test_every_credit_but_the_splice_teaches_something() -> None:
    results = json.loads((cross_tokenizer.RECIPE / "results.json").read_text(encoding="utf-8"))
    sampled = {name: found["outcomes"]["sampled"]["mean"] for name, found in results["credits"].items()}
    assert set(sampled) == set(cross_tokenizer.CREDITS)
    base = results["base"]["sampled"]["mean"]
    for name in ("prefix", "span_proportional", "whole_text"):
        assert sampled[name] >= base + 0.2, name
    assert sampled["splice"] < base
    for probe in results["probes"]:
        assert probe["spliced"] < probe["native"] - 100
        assert probe["per_character"] < probe["spliced"]
        assert probe["kept_tokens_span"] > 0.99
    assert results["alignment_fraction"]["span_proportional"] < 0.05
