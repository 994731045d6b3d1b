from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from lightning.pytorch.callbacks import RichProgressBar

from lightning_opd.callbacks import RolloutProgressBar, RunSummary
from lightning_opd.cli.console import _Unwanted, with_console
from tests.commands import Cli, Write


@pytest.fixture
def fit_yaml(world: Path, tmp_path: Path, write_yaml: Write) -> Path:
    rows = [{"prompt": f"question {i} \x1b[2J", "teacher": ("math", "code")[i % 2]} for i in range(32)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config: dict[str, Any] = {
        "model": {
            "student": {"path": str(world / "student")},
            "teachers": {name: str(world / name) for name in ("math", "code")},
        },
        "data": {
            "task": {"class_path": "lightning_opd.tasks.Jsonl", "init_args": {"path": str(tmp_path / "prompts.jsonl")}},
            "prompts_per_batch": 4,
            "sampling": {"max_new_tokens": 6},
            "evaluation": {"num_prompts": 4},
        },
        "trainer": {
            "accelerator": "cpu",
            "devices": 1,
            "max_steps": 2,
            "log_every_n_steps": 1,
            "limit_val_batches": 0,
            "default_root_dir": str(tmp_path / "run"),
            "callbacks": [
                {"class_path": "lightning_opd.callbacks.RolloutTable"},
                {"class_path": "lightning_opd.callbacks.ExportHuggingFace"},
            ],
        },
    }
    return write_yaml("fit.yaml", config)


def test_a_fit_says_what_it_does_without_advertisements_and_its_next_command_works(fit_yaml: Path, cli: Cli) -> None:
    code, out, err = cli("fit", "--config", fit_yaml)
    assert code == 0, err
    assert "\x1b" not in out + err
    for line in (
        "Tip",
        "litlogger",
        "GPU available",
        "TPU available",
        "_records",
        "_step_metrics",
        "`Trainer.fit` stopped",
    ):
        assert line not in out + err
    assert len(re.findall(r"^batch \d/2 · step \d/2 · ", out, re.MULTILINE)) == 2
    assert "stop tokens: " in out
    following = re.search(r"^next: python -m lightning_opd (.*)$", out, re.MULTILINE)
    assert following is not None
    code, out, err = cli(*following[1].split())
    assert code == 0, err
    assert "test scores" in out
    assert "Test metric" not in out
    assert "0.000" in out


def test_without_an_export_the_next_command_exports_the_checkpoint(fit_yaml: Path, cli: Cli, write_yaml: Write) -> None:
    config = yaml.safe_load(fit_yaml.read_text())
    save = {"class_path": "lightning_opd.callbacks.LastCheckpoint", "init_args": {"every_n_steps": 1}}
    bar = {"class_path": "lightning_opd.callbacks.RolloutProgressBar", "init_args": {"plain": False}}
    config["trainer"]["callbacks"] = [save, bar]
    code, out, err = cli("fit", "--config", write_yaml("save.yaml", config))
    assert code == 0, err
    assert "batch 1/2" not in out
    following = re.search(r"^next: python -m lightning_opd (export .*)$", out, re.MULTILINE)
    assert following is not None
    assert cli(*following[1].split())[0] == 0
    assert (Path(config["trainer"]["default_root_dir"]) / "model" / "config.json").is_file()


def test_the_users_own_bar_takes_the_place_of_the_default() -> None:
    own = RichProgressBar()
    settings = with_console({"callbacks": [own], "max_steps": 3})
    assert [type(callback) for callback in settings["callbacks"]] == [RichProgressBar, RunSummary]
    assert settings["max_steps"] == 3
    assert with_console(settings)["callbacks"] == settings["callbacks"]
    assert [type(callback) for callback in with_console({"callbacks": own})["callbacks"]] == [
        RichProgressBar,
        RunSummary,
    ]


def test_the_defaults_can_be_switched_off() -> None:
    assert [type(callback) for callback in with_console({})["callbacks"]] == [RolloutProgressBar, RunSummary]
    assert [type(c) for c in with_console({"enable_progress_bar": False})["callbacks"]] == [RunSummary]
    assert with_console({"enable_model_summary": None})["enable_model_summary"] is False
    assert with_console({"enable_model_summary": True})["enable_model_summary"] is True


@pytest.mark.parametrize(
    ("level", "text", "is_kept"),
    [
        (logging.INFO, "💡 Tip: For seamless cloud uploads and versioning, try installing [litmodels]", False),
        (logging.INFO, "GPU available: False, used: False", False),
        (logging.INFO, "TPU available: False, using: 0 TPU cores", False),
        (logging.INFO, "`Trainer.fit` stopped: `max_steps=12` reached.", False),
        (logging.INFO, "`Trainer.fit` stopped: No training batches.", True),
        (logging.WARNING, "GPU available but not used. You can set it by doing `Trainer(accelerator='gpu')`.", True),
        (logging.WARNING, "GPU available: but a warning", True),
        (logging.INFO, "Restored all states from the checkpoint at last.ckpt", True),
    ],
)
def test_advertisements_are_dropped_and_warnings_stay(level: int, text: str, is_kept: bool) -> None:
    assert _Unwanted().filter(logging.LogRecord("lightning", level, "", 0, text, (), None)) == is_kept
