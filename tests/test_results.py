"""The tables in the recipes' READMEs are those of the committed results, and the results keep the recipes' promises."""

from __future__ import annotations

import json
from types import ModuleType

import pytest

from tests.benchmarks import estimators, merge_tiny
from tests.benchmarks.record import with_tables

RESULTS = {
    benchmark: json.loads((benchmark.RECIPE / "results.json").read_text(encoding="utf-8"))
    for benchmark in (merge_tiny, estimators)
}


@pytest.mark.parametrize("benchmark", RESULTS, ids=lambda benchmark: benchmark.RECIPE.name)
def test_the_readme_shows_the_committed_results(benchmark: ModuleType) -> None:
    readme = (benchmark.RECIPE / "README.md").read_text(encoding="utf-8")
    results = RESULTS[benchmark]
    assert with_tables(readme, benchmark.tables(results)) == readme
    assert {"command", "commit", "date", "made_by"} <= results.keys()


def test_merge_tiny_was_measured_on_three_seeds_in_every_variant() -> None:
    assert set(RESULTS[merge_tiny]["variants"]) == set(merge_tiny.VARIANTS)
    assert RESULTS[merge_tiny]["seeds"] == [0, 1, 2]


@pytest.mark.parametrize("variant", ["distribution_matching", "lora"])
def test_the_merged_student_is_at_parity_with_every_teacher(variant: str) -> None:
    rows = RESULTS[merge_tiny]["variants"][variant]
    assert len(rows) == 2 * 2 * 2
    for row in rows:
        assert row["parity"] >= 0.99, row
        assert row["lowest"] >= 0.97, row
        assert min(row["n"]) >= 2048
        assert row["teacher"] >= 0.95
        assert row["base"] <= 0.65
    gain = [row["student"] - max(row["average"], row["task_arithmetic"]) for row in rows]
    assert sum(gain) / len(gain) >= 0.1
