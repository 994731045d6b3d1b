"""The configuration that the README starts with, at a size that a test can afford."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml

from tests.commands import Cli
from tests.tiny import save_model

ROOT = Path(__file__).parents[2]


@pytest.fixture
def prompts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with `prompts.jsonl` and the models that `configs/opd.yaml` names."""
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("base", "math_expert", "code_expert")):
        save_model(tmp_path / "models" / name, seed=seed)
    rows = [{"prompt": f"q{i}", "teacher": ("math", "code")[i % 2], "answer": "a"} for i in range(80)]
    (tmp_path / "prompts.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return tmp_path


def test_the_first_configuration_logs_every_step_validates_a_bounded_number_and_can_go_on(
    cli: Cli, prompts: Path
) -> None:
    small = ["--data.prompts_per_batch=2", "--data.sampling.max_new_tokens=2", "--trainer.accumulate_grad_batches=1"]
    small += ["--data.evaluation.num_validation_prompts=2", "--trainer.val_check_interval=20"]
    quick = ["--trainer.max_steps=20", "--trainer.enable_progress_bar=false"]
    logger = ["--trainer.logger=CSVLogger", "--trainer.logger.save_dir=logs", "--trainer.accelerator=cpu"]
    code, _, err = cli("fit", "--config", "opd.yaml", *small, *quick, *logger)
    assert code == 0, err
    assert (prompts / "runs" / "opd" / "model" / "model.safetensors").is_file()
    saved = torch.load(prompts / "runs" / "opd" / "checkpoints" / "last.ckpt", weights_only=False)
    assert saved["global_step"] == 20
    (metrics,) = (prompts / "logs").rglob("metrics.csv")
    lines = metrics.read_text(encoding="utf-8").splitlines()
    names = lines[0].split(",")
    steps = [row.split(",")[names.index("step")] for row in lines[1:]]
    assert set(steps) == {str(step) for step in range(20)}
    assert any(name.startswith("val") for name in names)


def test_the_first_configuration_validates_seldom_and_on_few_prompts() -> None:
    config = yaml.safe_load((ROOT / "configs" / "opd.yaml").read_text(encoding="utf-8"))
    trainer = config["trainer"]
    assert trainer["val_check_interval"] % trainer["accumulate_grad_batches"] == 0
    assert trainer["max_steps"] * trainer["accumulate_grad_batches"] % trainer["val_check_interval"] == 0
    assert config["data"]["evaluation"]["num_validation_prompts"] <= config["data"]["prompts_per_batch"]


def test_every_configuration_for_several_gpus_or_one_computes_in_bfloat16_with_float32_weights() -> None:
    for name in ("single_gpu", "fsdp"):
        text = (ROOT / "configs" / "trainer" / f"{name}.yaml").read_text(encoding="utf-8")
        assert yaml.safe_load(text)["trainer"]["precision"] == "bf16-mixed"
