from __future__ import annotations

import csv
import signal
import time
from pathlib import Path
from typing import Any

import lightning as L
import pytest
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from tensorboard.backend.event_processing import event_accumulator
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator as Tables

from lightning_opd.analysis.curves import read_curves
from lightning_opd.callbacks import Preemption, RolloutTable
from lightning_opd.functional.policy_losses import PPOClip
from lightning_opd.modules.logged_points import event_file_place
from lightning_opd.modules.resume import prepare_resume
from lightning_opd.objectives import PolicyGradient
from tests.callbacks.test_preemption import Sender
from tests.world import make_data, make_module, make_trainer

Points = dict[str, list[tuple[int, float]]]

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # tensorboard's own


class KilledError(Exception):
    """Ends a run at once, as SIGKILL does."""


class Kill(Callback):
    """Ends the run somewhere; the callbacks that save come before it."""

    def __init__(self, hook: str, step: int) -> None:
        self.hook, self.step = hook, step

    def _kill(self, hook: str, trainer: L.Trainer) -> None:
        if hook == self.hook and trainer.global_step == self.step:
            raise KilledError

    def on_validation_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        self._kill("validation", trainer)

    def on_before_zero_grad(self, trainer: L.Trainer, *_: Any) -> None:
        self._kill("update", trainer)


class Saves(ModelCheckpoint):
    """Saves after every step, and may kill the run right after that, before Lightning logs the step's points."""

    def __init__(self, folder: Path, kill_after: int = -1) -> None:
        super().__init__(folder, "{step}", every_n_train_steps=1, save_top_k=-1)
        self.kill_after = kill_after

    def on_train_batch_end(self, trainer: L.Trainer, *arguments: Any) -> None:
        super().on_train_batch_end(trainer, *arguments)
        if trainer.global_step == self.kill_after:
            raise KilledError


def train(
    world: Path,
    folder: Path,
    *callbacks: Callback,
    kill_after: int = -1,
    every: int = 4,
    logger: Logger | None = None,
    ckpt_path: Path | None = None,
) -> None:
    table = RolloutTable(every_n_batches=2, console=False)
    trainer = make_trainer(
        folder,
        table,
        *callbacks,
        Saves(folder, kill_after),
        logger=logger or TensorBoardLogger(folder, "", "logs"),
        enable_checkpointing=True,
        max_steps=6,
        accumulate_grad_batches=2,
        limit_val_batches=1,
        val_check_interval=every,
    )
    module, data = make_module(world), make_data()
    path = prepare_resume(trainer, module, data, None if ckpt_path is None else str(ckpt_path))
    try:
        trainer.fit(module, data, ckpt_path=path)
    except KilledError:
        if logger is None:
            trainer.loggers[0].save()
    if logger is None:
        time.sleep(1.01)  # event files of one second are read in an order of their own


def points(folder: Path) -> Points:
    """Return every point that a reader of the event files sees, but for times."""
    # TensorBoard reads tables with the second one; the first one forgets to hide them
    scalars, tables = event_accumulator.EventAccumulator(str(folder / "logs")), Tables(str(folder / "logs"))
    scalars.Reload()
    tables.Reload()
    seen = {tag: [(e.step, e.value) for e in scalars.Scalars(tag)] for tag in scalars.Tags()["scalars"]}
    seen |= {tag: [(e.step, 0.0) for e in tables.Tensors(tag)] for tag in tables.Tags()["tensors"] if "text" in tag}
    return {tag: found if not tag.startswith("time/") else [(s, 0.0) for s, _ in found] for tag, found in seen.items()}


@pytest.fixture(scope="module")
def undisturbed(world: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Points]:
    """The points by the number of micro-batches from one validation to the next; an epoch has six."""
    found = {}
    for every, validated in ((4, [1, 4]), (6, [2, 5])):
        folder = tmp_path_factory.mktemp("undisturbed")
        train(world, folder, every=every)
        found[every] = points(folder)
        assert [step for step, _ in found[every]["train/loss"]] == list(range(6))
        assert [step for step, _ in found[every]["val/reward"]] == validated
    return found


@pytest.mark.parametrize(
    ("hook", "step", "checkpoint", "every"),
    [
        pytest.param("saved", 2, 2, 4, marks=pytest.mark.slow),  # before its point and its validation
        pytest.param("saved", 3, 3, 4, marks=pytest.mark.slow),  # at the end of an epoch
        ("saved", 3, 3, 6),  # ... and before its validation
        pytest.param("validation", 2, 2, 4, marks=pytest.mark.slow),
        pytest.param("validation", 3, 3, 6, marks=pytest.mark.slow),
        pytest.param("validation", 6, 6, 6, marks=pytest.mark.slow),  # the last one
        pytest.param("saved", 6, 6, 6, marks=pytest.mark.slow),
        pytest.param("update", 2, 1, 4, marks=pytest.mark.slow),
        pytest.param("update", 4, 2, 4, marks=pytest.mark.slow),  # points were logged that are logged again
        pytest.param("saved", 5, 3, 6, marks=pytest.mark.slow),
    ],
)
def test_a_resumed_run_logs_every_point_once(
    hook: str, step: int, checkpoint: int, every: int, world: Path, tmp_path: Path, undisturbed: dict[int, Points]
) -> None:
    kill = Kill(hook, step)
    train(world, tmp_path, kill, kill_after=step if hook == "saved" else -1, every=every)
    train(world, tmp_path, ckpt_path=tmp_path / f"step={checkpoint}.ckpt", every=every)
    found = points(tmp_path)
    assert found.keys() == undisturbed[every].keys()
    for tag, expected in undisturbed[every].items():
        assert found[tag] == expected, tag
    curves = {curve.tag: list(zip(curve.steps, curve.values, strict=True)) for curve in read_curves(tmp_path)}
    assert curves["train/loss"] == undisturbed[every]["train/loss"]


@pytest.mark.parametrize(
    "batch", [pytest.param(2, marks=pytest.mark.slow), 4]
)  # the fourth micro-batch ends with a validation
def test_a_preempted_run_logs_every_point_once(
    batch: int, world: Path, tmp_path: Path, undisturbed: dict[int, Points]
) -> None:
    preemption = Preemption()
    train(world, tmp_path, Sender(signal.SIGTERM, batch), preemption)
    assert preemption.received == signal.SIGTERM
    train(world, tmp_path, ckpt_path=preemption.checkpoint)
    assert points(tmp_path) == undisturbed[4]


def rows(folder: Path) -> list[dict[str, str]]:
    """Return the rows of the only table below a folder, without what they leave empty and without times."""
    [path] = folder.rglob("metrics.csv")
    with path.open(newline="") as file:
        return [{k: v for k, v in row.items() if v and not k.startswith("time/")} for row in csv.DictReader(file)]


@pytest.mark.parametrize(
    ("hook", "step", "checkpoint", "every"),
    [
        ("update", 4, 2, 4),  # rows were written that are written again, a validation's among them
        pytest.param("saved", 3, 3, 6, marks=pytest.mark.slow),  # before the step's row and its validation
        pytest.param("validation", 3, 3, 6, marks=pytest.mark.slow),
    ],
)
def test_a_resumed_run_has_every_row_of_its_table_once(
    hook: str, step: int, checkpoint: int, every: int, world: Path, tmp_path: Path
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    train(world, whole, every=every, logger=CSVLogger(whole))
    kill = Kill(hook, step)
    train(world, killed, kill, kill_after=step if hook == "saved" else -1, every=every, logger=CSVLogger(killed))
    before = rows(killed)
    train(world, killed, ckpt_path=killed / f"step={checkpoint}.ckpt", every=every, logger=CSVLogger(killed))
    assert [row["step"] for row in rows(killed) if "train/loss" in row] == [str(number) for number in range(6)]
    assert rows(killed) == rows(whole)
    assert 0 < len(before) < len(rows(whole))


def test_a_point_is_logged_only_where_it_was_measured(world: Path, tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path, "", "logs")
    trainer = make_trainer(tmp_path, logger=logger, max_steps=4)
    trainer.fit(make_module(world, PolicyGradient(policy_loss=PPOClip())), make_data(updates_per_batch=2))
    found = points(tmp_path)
    assert [step for step, _ in found["train/loss"]] == [0, 1, 2, 3]
    assert [step for step, _ in found["train/reward"]] == [0, 2]  # of a rollout batch, not of each of its updates


def test_event_files_are_read_in_the_order_in_which_they_were_begun() -> None:
    names = ["9.host.domain.7.12", "10.host.domain.7.9", "10.host.domain.7.10", "10.host.domain.7.x"]
    paths = [Path(f"events.out.tfevents.{name}") for name in names]
    assert sorted(paths, key=event_file_place) == [paths[0], paths[3], paths[1], paths[2]]
