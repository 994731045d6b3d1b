"""A recipe whose running step gets a signal: it is saved, not failed, and the same command goes on."""

from __future__ import annotations

import copy
import os
import signal
from pathlib import Path
from typing import Any

import lightning as L
import pytest
from lightning.pytorch.callbacks import Callback

from tests.commands import Cli, Write
from tests.workflow.test_recipe import FIT, statuses


class Signalled(Callback):
    """Gets a signal after the first step, once."""

    def __init__(self, number: int) -> None:
        self.number = number

    def on_train_batch_end(self, trainer: L.Trainer, *arguments: Any, **more: Any) -> None:
        if trainer.global_step == 1:
            os.kill(os.getpid(), self.number)


class SignalledInATest(Callback):
    """Gets a signal where nothing is trained."""

    def on_test_batch_end(self, *arguments: Any, **more: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)


def test_a_signal_outside_training_is_no_success(
    cli: Cli, write_yaml: Write, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    test = {
        "model": {
            "student": {"path": str(world / "student")},
            "teachers": {n: str(world / n) for n in ("math", "code")},
        },
        "data": {
            "task": {"class_path": "tests.world.Letters"},
            "sampling": {"max_new_tokens": 4},
            "evaluation": {"num_prompts": 4, "batch_size": 1},
        },
        "trainer": {
            "accelerator": "cpu",
            "logger": False,
            "callbacks": [{"class_path": f"{__name__}.SignalledInATest"}],
        },
    }
    before = signal.getsignal(signal.SIGTERM)
    try:
        code, _, err = cli("test", "--config", write_yaml("test.yaml", test))
    finally:
        signal.signal(signal.SIGTERM, before)
    assert code == 128 + signal.SIGTERM, err
    assert not Path("scores.json").exists()
    assert Path("config_test.yaml").is_file()


@pytest.mark.filterwarnings("ignore")  # Lightning's advice on workers and loggers
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_step_that_a_signal_ends_keeps_its_status_and_has_not_failed(
    cli: Cli, write_yaml: Write, number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    fit: dict[str, Any] = copy.deepcopy(FIT)
    fit["trainer"]["callbacks"] = [
        {"class_path": "lightning_opd.callbacks.LastCheckpoint", "init_args": {"every_n_steps": 1}},
        {"class_path": f"{__name__}.Signalled", "init_args": {"number": int(number)}},
    ]
    write_yaml("small/base.yaml", fit)
    tokenizer = {"task": {"class_path": "lightning_opd.tasks.Strings"}, "vocab_size": 320, "num_examples": 20}
    write_yaml("small/tokenizer.yaml", {**tokenizer, "output": "${run}/tokenizer"})
    steps = [
        {"name": "tokenizer", "command": "tokenizer", "config": "tokenizer.yaml"},
        {"name": "base", "command": "fit", "config": "base.yaml"},
    ]
    recipe = write_yaml("small/recipe.yaml", {"steps": steps}).parent
    before = {kind: signal.getsignal(kind) for kind in (signal.SIGINT, signal.SIGTERM)}
    try:
        code, _, err = cli("run", recipe)
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)
    assert code == 128 + number
    assert "Traceback" not in err
    assert "failed" not in err
    assert "stopped in step `base` (fit)" in err
    assert f"go on with: python -m lightning_opd run {recipe}" in err
    assert "--ckpt_path" not in err  # how the step alone would go on
    code, out, err = cli("run", recipe)
    assert code == 0, err
    assert statuses(out) == {"tokenizer": "skipped", "base": "resumed"}
    assert Path("runs/small/seed0/base/checkpoints/last.ckpt").is_file()
