"""The evidence of recipes/estimators: the README shows the committed results, and they support its conclusions."""

from __future__ import annotations

import json

from recipes.estimators.tables import arms_of, curves_of, mean
from tests.benchmarks.estimators import RECIPE, STEPS, with_tables

RESULTS = json.loads((RECIPE / "results.json").read_text(encoding="utf-8"))
NOISE = {when: {name: row["noise_to_signal"] for name, row in RESULTS["noise"][when].items()} for when in ("start",)}


def ends(step: str, metric: str) -> dict[str, list[float]]:
    """Return every arm's last validation, one number per seed."""
    ledger = RESULTS[step]
    return {arm: [curve[-1][metric] for curve in curves_of(ledger, arm)] for arm in arms_of(ledger)}


def test_the_readme_of_estimators_shows_the_committed_results() -> None:
    readme = (RECIPE / "README.md").read_text(encoding="utf-8")
    assert with_tables(readme, RESULTS) == readme
    assert {"command", "commit", "date", "machine", "made_by", *STEPS} <= RESULTS.keys()
    assert (RECIPE / "estimators.png").stat().st_size > 10_000
    assert all(len(ends(step, "reward")["reverse KL"]) == 3 for step in ("convergence", "long_horizon"))


def test_the_slopes_are_those_of_the_theory() -> None:
    slopes = {name: mean(own) for name, own in RESULTS["slopes"]["slopes"].items()}
    assert slopes["to-go"] - slopes["immediate"] >= 1
    assert slopes["full trajectory"] - slopes["immediate"] >= 1
    assert slopes["KL-to-go, exact value"] - slopes["immediate"] <= 0.3


def test_the_whole_distribution_is_less_noisy_and_learns_faster_than_sampled_tokens() -> None:
    assert min(NOISE["start"].values()) == NOISE["start"]["reverse KL"]
    outcomes, kls = ends("convergence", "reward"), ends("convergence", "teacher_kl")
    for arm in outcomes.keys() - {"reverse KL"}:
        assert mean(outcomes["reverse KL"]) > mean(outcomes[arm])
        assert mean(kls["reverse KL"]) < mean(kls[arm])
