"""Two processes with one student between them, whose rollouts a vLLM server generates."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.test_command_line import ENVIRONMENT, ROOT
from tests.servers.conftest import EAGER, TEACHER
from tests.tiny import save_model

pytestmark = pytest.mark.vllm
NUM_BATCHES = 4


@pytest.mark.parametrize(("name", "kind"), [("ddp", "adapter"), ("fsdp", "whole")])
def test_a_server_takes_over_the_student_of_two_processes(name: str, kind: str, python: str, tmp_path: Path) -> None:
    for seed, model in enumerate(("student", "math", "code")):
        save_model(tmp_path / model, seed=seed, **TEACHER)
    rows = [{"prompt": f"question {i} " + "x" * (i % 7), "teacher": ("math", "code")[i % 2]} for i in range(16)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    launch = {
        "python": python,
        "arguments": list(EAGER),
        "environments": [{"VLLM_CPU_OMP_THREADS_BIND": "0", "HF_HUB_OFFLINE": "1"}],
        "log_folder": str(tmp_path),
    }
    config = {
        "model": {
            "student": {"path": str(tmp_path / "student")} | ({"lora": {"rank": 4}} if kind == "adapter" else {}),
            "teachers": {teacher: str(tmp_path / teacher) for teacher in ("math", "code")},
            "objective": {
                "class_path": "lightning_opd.objectives.PolicyGradient",
                "init_args": {"off_policy": {"class_path": "lightning_opd.functional.off_policy.TruncatedImportance"}},
            },
            "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.02}},
        },
        "data": {
            "task": {"class_path": "lightning_opd.tasks.Jsonl", "init_args": {"path": str(tmp_path / "prompts.jsonl")}},
            "prompts_per_batch": 4,
            "samples_per_prompt": 2,
            "sampling": {"max_new_tokens": 12},
            "engine": {"class_path": "lightning_opd.rollouts.VLLMEngine", "init_args": {"launch": launch}},
        },
        "trainer": {
            "max_steps": NUM_BATCHES,
            "limit_val_batches": 0,
            "log_every_n_steps": 1,
            "default_root_dir": str(tmp_path),
            "logger": {
                "class_path": "lightning.pytorch.loggers.CSVLogger",
                "init_args": {"save_dir": str(tmp_path), "name": "", "version": "logs"},
            },
        },
    }
    (tmp_path / "fit.yaml").write_text(json.dumps(config))
    overlay = str(ROOT / "configs" / "trainer" / f"{name}.yaml")
    words = [sys.executable, "-m", "lightning_opd", "fit", "--config", str(tmp_path / "fit.yaml"), "--config", overlay]
    words += ["--trainer.accelerator=cpu", "--trainer.precision=32-true"]
    done = subprocess.run(words, env=ENVIRONMENT, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    with (tmp_path / "logs" / "metrics.csv").open() as file:
        logged = [row for row in csv.DictReader(file) if row.get("train/engine_gap")]
    assert len(logged) == NUM_BATCHES
    assert max(float(row["train/engine_gap"]) for row in logged) < 1e-3
