"""The next rollout batch generated while the student learns from this one."""

from __future__ import annotations

import copy
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from lightning_opd.errors import ConfigError
from lightning_opd.functional.off_policy import TruncatedImportance
from lightning_opd.interfaces import OnProgress, RolloutEngine
from lightning_opd.objectives import PolicyGradient
from lightning_opd.rollouts import InProcessEngine
from lightning_opd.types import Sample, Sampling
from tests.world import Recorder, make_data, make_module, make_trainer

NUM_BATCHES = 4


class Copying(RolloutEngine):
    """Writes with a copy of the weights as they were at `sync`, as a server does.

    Args:
        is_ahead: Whether it generates the next rollout batch ahead.
        fails_at: The call of `generate` that fails.
    """

    def __init__(self, *, is_ahead: bool, fails_at: int = -1) -> None:
        self.inner, self.is_ahead, self.fails_at = InProcessEngine(), is_ahead, fails_at
        self.version, self.versions, self.threads = -1, list[int](), list[str]()

    @property
    def generates_ahead(self) -> bool:
        return self.is_ahead

    def sync(self, student: torch.nn.Module, version: int) -> None:
        if version != self.version:
            self.inner.sync(copy.deepcopy(student), version)
            self.version = version

    def generate(
        self,
        token_ids: Sequence[Sequence[int]],
        num_samples: int,
        seeds: Sequence[int],
        sampling: Sampling = Sampling(),
        on_progress: OnProgress | None = None,
    ) -> list[Sample]:
        if len(self.versions) == self.fails_at:
            msg = "out of memory"
            raise RuntimeError(msg)
        self.versions.append(self.version)
        self.threads.append(threading.current_thread().name)
        return self.inner.generate(token_ids, num_samples, seeds, sampling, on_progress)


def train(world: Path, folder: Path, engine: RolloutEngine, **settings: Any) -> tuple[Recorder, L.Trainer]:
    recorder, module = Recorder(), make_module(world, PolicyGradient(off_policy=TruncatedImportance()))
    trainer = make_trainer(folder, recorder, max_steps=NUM_BATCHES, **settings)
    trainer.fit(module, make_data(engine=engine))
    return recorder, trainer


def test_each_rollout_batch_is_that_of_a_student_one_update_older(world: Path, tmp_path: Path) -> None:
    engine, plain = Copying(is_ahead=True), Copying(is_ahead=False)
    recorder, _ = train(world, tmp_path / "ahead", engine)
    control, _ = train(world, tmp_path / "control", plain)
    assert engine.versions == [0, 0, 1, 2]
    assert plain.versions == [0, 1, 2, 3]
    assert ["generate" in name for name in engine.threads] == [False, True, True, True]
    assert [logged["train/staleness"] for logged in recorder.logged] == [0, 1, 1, 1]
    assert all("train/staleness" not in logged for logged in control.logged)
    for ours, theirs in zip(recorder.rollout_batches, control.rollout_batches, strict=True):
        assert [t.prompt.key for t in ours.trajectories] == [t.prompt.key for t in theirs.trajectories]
    gaps = [logged["train/engine_gap"] for logged in recorder.logged]
    assert gaps[0] < 1e-5
    assert min(gaps[1:]) > 1e-5  # weighed by what the student has become since


def test_validation_waits_for_what_is_generated_ahead(world: Path, tmp_path: Path) -> None:
    engine = Copying(is_ahead=True)
    train(world, tmp_path, engine, limit_val_batches=1, val_check_interval=2)
    assert engine.versions == [0, 0, 1, 2, 2]
    assert ["generate" in name for name in engine.threads] == [False, True, True, False, True]


def test_what_goes_wrong_ahead_ends_the_run(world: Path, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="out of memory"):
        train(world, tmp_path, Copying(is_ahead=True, fails_at=2))
    assert not [thread for thread in threading.enumerate() if "generate" in thread.name]


def test_several_processes_are_refused(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(L.Trainer, "world_size", property(lambda trainer: 2))
    with pytest.raises(ConfigError, match=r"generates ahead \(`overlap: 1`\) in one process only, got 2"):
        train(world, tmp_path, Copying(is_ahead=True))
