"""The command line with real processes: the shipped trainer configurations, and a run that is killed."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from lightning_opd.models import load_causal_lm
from tests.integration.chaos import ranks

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
pytestmark = [pytest.mark.integration, pytest.mark.slow]


def command(world: Path, folder: Path, *words: str) -> list[str]:
    """Return a `fit` that saves after every step and exports at the end."""
    folder.mkdir(exist_ok=True)
    rows = [{"prompt": f"question {i} " + "x" * (i % 7), "teacher": ("math", "code")[i % 2]} for i in range(64)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    checkpoint = {"dirpath": str(folder / "checkpoints"), "filename": "last", "every_n_train_steps": 1}
    config = {
        "model": {
            "student": {"path": str(world / "student")},
            "teachers": {name: str(world / name) for name in ("math", "code")},
        },
        "data": {
            "task": {"class_path": "lightning_opd.tasks.Jsonl", "init_args": {"path": str(folder / "prompts.jsonl")}},
            "prompts_per_batch": 4,
            "sampling": {"max_new_tokens": 16},
        },
        "trainer": {
            "max_steps": 12,
            "limit_val_batches": 0,
            "logger": False,
            "default_root_dir": str(folder),
            "callbacks": [
                {
                    "class_path": "lightning.pytorch.callbacks.ModelCheckpoint",
                    "init_args": {**checkpoint, "enable_version_counter": False},
                },
                {"class_path": "lightning_opd.callbacks.ExportHuggingFace"},
            ],
        },
    }
    (folder / "fit.yaml").write_text(json.dumps(config))
    return [sys.executable, "-m", "lightning_opd", "fit", "--config", str(folder / "fit.yaml"), *words]


@pytest.mark.parametrize("name", ["cpu", "ddp", "fsdp"])
def test_the_shipped_trainer_configurations_run(name: str, world: Path, tmp_path: Path) -> None:
    overlay = str(ROOT / "configs" / "trainer" / f"{name}.yaml")
    words = ["--config", overlay, "--trainer.accelerator=cpu", "--trainer.max_steps=2"]
    run = command(world, tmp_path / name, *words)
    done = subprocess.run(run, env=ENVIRONMENT, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / name / "model" / "model.safetensors").exists()


@pytest.mark.parametrize("merge", [True, False])
def test_an_adapter_is_exported_after_sharded_training(merge: bool, world: Path, tmp_path: Path) -> None:
    overlay = str(ROOT / "configs" / "trainer" / "fsdp.yaml")
    words = command(
        world, tmp_path / "run", "--config", overlay, "--trainer.max_steps", "2", "--trainer.accelerator=cpu"
    )
    config = json.loads((tmp_path / "run" / "fit.yaml").read_text())
    config["model"]["student"]["lora"] = {"rank": 2}
    config["trainer"]["callbacks"][1]["init_args"] = {"merge": merge}
    (tmp_path / "run" / "fit.yaml").write_text(json.dumps(config))
    done = subprocess.run(words, env=ENVIRONMENT, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert load_causal_lm(str(tmp_path / "run" / "model")).config.model_type == "qwen3"
    names = {path.name for path in (tmp_path / "run" / "model").iterdir()}
    assert ("model.safetensors" in names, "adapter_model.safetensors" in names) == (merge, not merge)


def test_a_killed_run_resumes_to_the_same_bytes(world: Path, tmp_path: Path) -> None:
    words = ["--trainer.accelerator=cpu", "--trainer.devices=1"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    subprocess.run(command(world, whole, *words), env=ENVIRONMENT, check=True, capture_output=True, timeout=240)
    checkpoint = killed / "checkpoints" / "last.ckpt"
    process = subprocess.Popen(
        command(world, killed, *words), env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    while not checkpoint.exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (killed / "model").exists()
    again = command(world, killed, *words, "--ckpt_path", str(checkpoint))
    subprocess.run(again, env=ENVIRONMENT, check=True, capture_output=True, timeout=240)
    weights = [folder / "model" / "model.safetensors" for folder in (whole, killed)]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def alive_in_group(group: int) -> list[int]:
    """Return the processes of a group that still run."""
    alive = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, of_group = stat.read_text().rpartition(")")[2].split()[:3]
            alive += [int(stat.parent.name)] if int(of_group) == group and state != "Z" else []
    return alive


def overlaid(overlay: str) -> list[str]:
    """Return the words for one of the shipped configurations of the trainer."""
    return ["--config", str(ROOT / "configs" / "trainer" / f"{overlay}.yaml"), "--trainer.accelerator=cpu"]


@pytest.fixture(scope="module")
def undisturbed(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], bytes]:
    """Return what a run that nothing stops exports; it is run once under each configuration of the trainer."""

    @functools.cache
    def weights(overlay: str) -> bytes:
        folder = tmp_path_factory.mktemp(overlay)
        words = command(world, folder, *overlaid(overlay))
        subprocess.run(words, env=ENVIRONMENT, check=True, capture_output=True, timeout=240)
        return (folder / "model" / "model.safetensors").read_bytes()

    return weights


@pytest.mark.parametrize(
    ("overlay", "number", "receiver"),
    [
        ("cpu", signal.SIGTERM, "all"),
        ("ddp", signal.SIGTERM, "all"),
        ("ddp", signal.SIGTERM, "the second"),
        ("ddp", signal.SIGINT, "all"),
        ("fsdp", signal.SIGTERM, "all"),
        ("fsdp", signal.SIGTERM, "the second"),
        ("fsdp", signal.SIGINT, "all"),
    ],
)
def test_a_signal_to_any_process_ends_them_all_and_the_run_goes_on(
    undisturbed: Callable[[str], bytes],
    world: Path,
    tmp_path: Path,
    overlay: str,
    number: signal.Signals,
    receiver: str,
) -> None:
    stopped, trainer = tmp_path / "stopped", overlaid(overlay)
    checkpoint = stopped / "checkpoints" / "last.ckpt"
    process = subprocess.Popen(
        command(world, stopped, *trainer),
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 120
    while not checkpoint.exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.01)
    if receiver == "all":
        os.killpg(process.pid, number)  # as a scheduler or a terminal does
    else:
        os.kill(ranks(process.pid)[1], number)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + number, said[-3000:]
    assert said.count(f"--ckpt_path {checkpoint}") == 1
    deadline = time.monotonic() + 60
    while (left := alive_in_group(process.pid)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not left
    assert not (stopped / "model").exists()
    again = command(world, stopped, *trainer, "--ckpt_path", str(checkpoint))
    subprocess.run(again, env=ENVIRONMENT, check=True, capture_output=True, timeout=240)
    assert (stopped / "model" / "model.safetensors").read_bytes() == undisturbed(overlay)
