"""Every step of `merge_smollm2` with the real model, each cut short."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file

from lightning_opd.cli.main import main
from tests.real import fetch

RECIPE = Path(__file__).parents[2] / "recipes" / "merge_smollm2"
EXPERTS = {"chain_sum", "letter_counting", "spell_backward"}
FEW = ["--data.max_measured_prompts=9", "--data.sampling.max_new_tokens=4"]
pytestmark = [
    pytest.mark.timeout(450),
    pytest.mark.filterwarnings("ignore::SyntaxWarning"),  # of reasoning-gym's own sources, when first compiled
]


def shorter(step: dict[str, Any]) -> list[str]:
    """Return words for two batches of three prompts in a training step, and two prompts a domain in a test."""
    if step["command"] == "test":
        return [*FEW, "--data.evaluation.num_prompts=2", "--data.evaluation.modes=[greedy]"]
    if step["command"] != "fit":
        return []
    if "multitask.yaml" in step["config"]:
        return ["--trainer.max_steps=2", "--data.init_args.batch_size=3", "--data.init_args.num_examples=6"]
    return [*FEW, "--trainer.max_steps=2", "--data.prompts_per_batch=3", "--trainer.limit_val_batches=0"]


def test_the_recipe_merges_adapters_of_the_real_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = fetch.smollm2()
    monkeypatch.chdir(tmp_path)
    Path("models").mkdir()
    Path("models/SmolLM2-135M-Instruct").symlink_to(model)
    shutil.copytree(RECIPE, "merge_smollm2")
    content = yaml.safe_load((RECIPE / "recipe.yaml").read_text(encoding="utf-8"))
    for step in content["steps"]:
        step["overrides"] = [*step.get("overrides", []), *shorter(step)]
    Path("merge_smollm2/recipe.yaml").write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    assert main(["run", "./merge_smollm2"]) == 0
    runs = Path("runs/merge_smollm2/seed0")
    report = json.loads((runs / "parity/parity.json").read_text(encoding="utf-8"))
    assert set(report["domains"]) == set(report["experts"]) == EXPERTS
    others = {
        "average",
        "base",
        "merge_from_average",
        "merge_from_task_arithmetic",
        "multitask",
        "task_arithmetic",
        "ties",
    }
    for splits in report["domains"].values():
        assert others | {"student", "teacher", "parity"} <= set(splits["test"]["greedy"])
        assert splits["test"]["greedy"]["n"] == 2
    ranks = {name: rank_of(runs / name / "model") for name in (*EXPERTS, "merge", "average", "merge_from_average")}
    assert ranks == dict.fromkeys((*EXPERTS, "merge"), 16) | {"average": 48, "merge_from_average": 48}
    before, after = (
        load_file(runs / name / "model/adapter_model.safetensors") for name in ("average", "merge_from_average")
    )
    assert before.keys() == after.keys()
    assert any(not before[key].equal(after[key]) for key in before)


def rank_of(adapter: Path) -> int:
    rank: int = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))["r"]
    return rank
