"""Kills a training run at random moments and ranks, starts it again by the same command, and compares the end.

`python -m tests.integration.chaos --kills 30 --seed 0` goes through one process, DDP and FSDP2, full and LoRA.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
SETTINGS = tuple((strategy, adapter) for strategy in ("cpu", "ddp", "fsdp") for adapter in ("full", "lora"))
LONGEST_WAIT = 60.0
"""Seconds that the processes of a run may need to end after one of them was told to."""


def command(world: Path, folder: Path, strategy: str, adapter: str, *words: str) -> list[str]:
    """Return a `fit` of ten optimiser steps that is the same for every start."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [{"prompt": f"question {i} " + "x" * (i % 7), "teacher": ("math", "code")[i % 2]} for i in range(24)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    schedule = {"class_path": "lightning_opd.modules.WarmupCosine", "init_args": {"warmup_steps": 2}}
    callbacks = [
        {"class_path": "lightning_opd.callbacks.LastCheckpoint", "init_args": {"every_n_steps": 1}},
        {"class_path": "lightning_opd.callbacks.RolloutTable", "init_args": {"every_n_batches": 2, "console": False}},
        {"class_path": "lightning_opd.callbacks.ExportHuggingFace"},
    ]
    student = {"path": str(world / "student"), "dtype": "float32"}
    config = {
        "model": {
            "student": {**student, "lora": {"rank": 2}} if adapter == "lora" else student,
            "teachers": {name: str(world / name) for name in ("math", "code")},
            "objective": {"class_path": "lightning_opd.objectives.PolicyGradient"},
            "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.001}},
            "lr_scheduler": schedule,
        },
        "data": {
            "task": {"class_path": "lightning_opd.tasks.Jsonl", "init_args": {"path": str(folder / "prompts.jsonl")}},
            "prompts_per_batch": 4,
            "updates_per_batch": 2,
            "sampling": {"max_new_tokens": 8},
            "evaluation": {"num_validation_prompts": 2},
        },
        "trainer": {
            "max_steps": 10,
            "val_check_interval": 3,
            "num_sanity_val_steps": 0,
            "log_every_n_steps": 1,
            "enable_progress_bar": False,
            "default_root_dir": str(folder),
            "callbacks": callbacks,
        },
    }
    config["model"]["objective"]["init_args"] = {  # type: ignore[index]
        "policy_loss": {"class_path": "lightning_opd.functional.policy_losses.PPOClip"}
    }
    (folder / "fit.yaml").write_text(json.dumps(config))
    overlay = str(ROOT / "configs" / "trainer" / f"{strategy}.yaml")
    own = ["--config", str(folder / "fit.yaml"), "--config", overlay, "--trainer.accelerator=cpu"]
    return [sys.executable, "-m", "lightning_opd", "fit", *own, *words]


def processes_of(session: int) -> Iterator[tuple[int, str]]:
    """Yield the id and the state of each process of a session that has not ended."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, _, of_session = stat.read_text().rpartition(")")[2].split()[:4]
            if int(of_session) == session and state != "Z":
                yield int(stat.parent.name), state


def ranks(session: int) -> list[int]:
    """Return the training processes of a session, the first rank first; not what they start for a moment."""
    found = []
    for pid, _ in processes_of(session):
        with contextlib.suppress(OSError):  # a fork of the first rank has its words until it becomes something else
            started_by = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
            words = Path(f"/proc/{pid}/cmdline").read_bytes()
            is_rank = pid == session or (started_by == session and b"lightning_opd.__main__" in words)
            found += [pid] if is_rank and b"lightning_opd" in words else []
    return sorted(found)


def start(words: list[str], log: Path) -> subprocess.Popen[str]:
    """Start a run in a session of its own; what it says is added to a file."""
    with log.open("a") as file:
        return subprocess.Popen(
            words, env=ENVIRONMENT, stdout=file, stderr=subprocess.STDOUT, start_new_session=True, text=True
        )


def wait_for_end(process: subprocess.Popen[str], seconds: float = LONGEST_WAIT) -> float:
    """Return how long all processes of a run needed to end, or raise TimeoutError."""
    began = time.monotonic()
    while process.poll() is None or any(processes_of(process.pid)):
        if time.monotonic() - began > seconds:
            left = sorted(processes_of(process.pid))
            for number, _ in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(number, signal.SIGKILL)
            msg = f"processes {left} did not end within {seconds:.0f} s"
            raise TimeoutError(msg)
        time.sleep(0.05)
    return time.monotonic() - began


def plain(value: object) -> object:
    """Return nested values with tensors as lists, for a comparison to the last bit."""
    if isinstance(value, torch.Tensor):
        return value.double().tolist()
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def outcome(folder: Path) -> dict[str, Any]:
    """Return all that a run leaves and that must not depend on how often it was killed."""
    state = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    # a resumed run goes on in its folder; one that was killed before it saved anything has left a folder of its own
    versions = (folder / "lightning_logs").iterdir()
    *unsaved, version = sorted(versions, key=lambda path: int(path.name.rpartition("_")[2]))
    events = EventAccumulator(str(version), size_guidance={"tensors": 0})
    events.Reload()
    points = {
        tag: [(e.step, None if tag.startswith("time/") else e.tensor_proto.SerializeToString()) for e in found]
        for tag in events.Tags()["tensors"]
        if (found := events.Tensors(tag)) and tag != "hp_metric"
    }
    loader = state["loops"]["fit_loop"]["state_dict"]
    kept = {name: plain(state[name]) for name in ("state_dict", "optimizer_states", "lr_schedulers")}
    kept_files = (p for p in folder.rglob("*") if p.is_file() and not any(old in p.parents for old in unsaved))
    files = sorted(p.name for p in kept_files if not p.name.startswith("events."))
    weights = (folder / "model" / "model.safetensors").read_bytes()
    return {**kept, "prompt order": plain(loader), "points": points, "files": files, "weights": weights}


def different(name: str, expected: object, found: object) -> str:
    """Return what differs, and how: for points the tag and the steps at which it was logged."""
    if not isinstance(expected, dict) or not isinstance(found, dict):
        return f"{name} differs: {str(expected)[:300]} is {str(found)[:300]}"
    other = {key for key in expected.keys() | found.keys() if expected.get(key) != found.get(key)}
    steps = {key: [[point[0] for point in points.get(key, [])] for points in (expected, found)] for key in other}
    return f"{name} differs: {steps if name == 'points' else other}"


@dataclass
class Chaos:
    """One setting that is killed again and again.

    Args:
        world: Where the models lie.
        folder: Where to run.
        strategy: "cpu", "ddp" or "fsdp".
        adapter: "full" or "lora".
        random: Chooses rank, signal and moment.
    """

    world: Path
    folder: Path
    strategy: str
    adapter: str
    random: random.Random

    def run(self, kills: int) -> list[str]:
        """Kill as often as asked, over as many runs as that takes; return what was done, or raise AssertionError."""
        expected, seconds = self._undisturbed()
        said, done = [f"{self.strategy} {self.adapter}: {seconds:.1f} s from the first checkpoint to the end"], 0
        while done < kills:
            shutil.rmtree(self.folder / "run", ignore_errors=True)
            while True:
                words = command(self.world, self.folder / "run", self.strategy, self.adapter, "--ckpt_path", "auto")
                process = start(words, self.folder / "run.log")
                if done < kills and (report := self._kill(process, seconds)):
                    done += 1
                    said.append(f"  kill {done}: {report}")
                    continue
                code = process.wait(timeout=400)
                wait_for_end(process)
                break
            assert code == 0, (self.folder / "run.log").read_text()[-3000:]
            found = outcome(self.folder / "run")
            for name, value in expected.items():
                assert found[name] == value, f"{different(name, value, found[name])} after {said}"
            said.append("  the same weights, optimiser, prompt order, points and files as the undisturbed run")
        return said

    def _undisturbed(self) -> tuple[dict[str, Any], float]:
        """Return what the run leaves, and the seconds from its first checkpoint to its end."""
        words = command(self.world, self.folder / "whole", self.strategy, self.adapter, "--ckpt_path", "auto")
        process = start(words, self.folder / "whole.log")
        self._wait_for_save(process, self.folder / "whole", None)
        began = time.monotonic()
        assert process.wait(timeout=400) == 0, (self.folder / "whole.log").read_text()[-3000:]
        wait_for_end(process)
        return outcome(self.folder / "whole"), time.monotonic() - began

    def _wait_for_save(self, process: subprocess.Popen[str], folder: Path, before: int | None) -> None:
        """Wait until the run has saved another checkpoint than it found, or has ended."""
        while process.poll() is None and _inode(folder) == before:
            time.sleep(0.01)

    def _kill(self, process: subprocess.Popen[str], seconds: float) -> str:
        """Wait, send a signal, and wait for the end; empty where the run has ended before."""
        is_training = self.random.random() < 0.75
        if is_training:
            self._wait_for_save(process, self.folder / "run", _inode(self.folder / "run"))
        moment = self.random.uniform(0.0, 0.6 * seconds if is_training else 12.0)
        number, picks = self.random.choice(SIGNALS), self.random.random()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=moment)
            return ""
        own = ranks(process.pid)
        to_all, rank = picks < 0.25, int(picks * len(own))
        for pid in own if to_all else own[rank : rank + 1]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        waited = wait_for_end(process)
        whom = "all" if to_all else f"rank {rank} of {len(own)}"
        when = f"{moment:.1f} s after {'a checkpoint' if is_training else 'the start'}"
        return f"{number.name} to {whom} {when}; status {process.returncode}, ended in {waited:.1f} s"


def _inode(folder: Path) -> int | None:
    path = folder / "checkpoints" / "last.ckpt"
    return path.stat().st_ino if path.exists() else None


def main() -> None:
    """Spread the kills over all settings and print what was done."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    from tests.world import save_world

    with tempfile.TemporaryDirectory() as name:
        world = save_world(Path(name) / "world")
        for index, (strategy, adapter) in enumerate(SETTINGS):
            kills = arguments.kills // len(SETTINGS) + (index < arguments.kills % len(SETTINGS))
            folder = Path(name) / f"{strategy}_{adapter}"
            folder.mkdir()
            chaos = Chaos(world, folder, strategy, adapter, random.Random(f"{arguments.seed} {strategy} {adapter}"))
            sys.stdout.write("\n".join(chaos.run(kills)) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
