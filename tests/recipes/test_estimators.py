"""Every step of recipes/estimators with tiny stand-ins for its models."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lightning_opd.cli.script import script
from recipes.estimators.tables import arms_of
from tests.tiny import save_model

RECIPE = Path(__file__).parents[2] / "recipes" / "estimators"


@pytest.mark.slow
def test_every_step_runs_with_tiny_models_and_the_report_names_every_arm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("base", "arithmetic", "strings")):
        save_model(Path("models") / name / "model", seed)
    training = {"lrs": [1e-3], "steps_to_choose": 1, "steps": 1, "num_seeds": 1, "prompts_per_batch": 2}
    arguments: dict[str, dict[str, object]] = {
        "noise": {"models": "models", "rollout_batches": 2, "warm_up": 1, "prompts_per_batch": 2, "steps_to_midway": 1},
        "slopes": {"horizons": [2, 4], "num_rollouts": 50, "num_toys": 1},
        "convergence": {"models": "models", "num_validation": 2, **training},
        "long_horizon": {"num_digits": 3, "expert_steps": 2, "num_validation": 2, **training},
        "report": {"results": "run"},
    }
    for step, own in arguments.items():
        script(str(RECIPE / f"{step}.py"), {**own, "output": f"run/{step}"})
    report = Path("run/report/estimators.md").read_text(encoding="utf-8")
    for step in ("convergence", "long_horizon"):
        ledger = Path(f"run/{step}/{step}.json")
        arms = arms_of(json.loads(ledger.read_text(encoding="utf-8")))
        assert len(arms) >= 4
        assert all(f"| {arm} |" in report for arm in arms)
        before = ledger.stat().st_mtime_ns
        script(str(RECIPE / f"{step}.py"), {**arguments[step], "output": f"run/{step}"})
        assert ledger.stat().st_mtime_ns == before, "what the file holds is not trained again"
    assert Path("run/report/estimators.png").stat().st_size > 10_000
