"""Logged points of steps around a checkpoint: none is lost, none is there twice, when a run goes on from it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L  # Lightning's own convention
from lightning.pytorch.loggers import TensorBoardLogger

KEY = "logged_points"
"""Where a checkpoint keeps what this file knows."""


def points_to_come(trainer: L.Trainer, late_metrics: Mapping[str, float]) -> dict[str, Any]:
    """Return what Lightning will log for the step that is being saved, and where.

    Lightning logs a step's points after its checkpoint, and forgets a validation that is due after it.

    Args:
        trainer: In the middle of a save.
        late_metrics: Metrics of the step that the module logs after a checkpoint.
    """
    loop, connector = trainer.fit_loop.epoch_loop, trainer._logger_connector
    progress: dict[str, int] = loop.batch_progress.total.state_dict()
    fetcher = trainer.fit_loop._data_fetcher
    is_processed = progress["processed"] == progress["completed"] + 1
    is_inside = trainer.training and is_processed and not loop._should_accumulate()
    metrics: dict[str, float] = {}
    if is_inside and connector.should_update_logs:
        logged = {name: float(value) for name, value in connector.metrics["log"].items()}
        metrics = {**late_metrics, **logged, "epoch": float(trainer.current_epoch)}
    is_due = is_inside and fetcher is not None and loop._should_check_val_fx(fetcher)
    folders = [
        {"root": logger.root_dir, "version": logger.version} if isinstance(logger, TensorBoardLogger) else None
        for logger in trainer.loggers
    ]
    return {
        "next_step": trainer.global_step,
        "metrics": metrics,
        "is_validation_due": bool(is_due),
        "folders": folders,
        "time": time.time(),
    }


def go_on(trainer: L.Trainer, checkpoint: dict[str, Any]) -> None:
    """Bring the logged points to what they were at a checkpoint and complete its step's; let a due validation run.

    Event files stay as they are: readers are told which points count no more.

    Args:
        trainer: About to restore its loops from the checkpoint.
        checkpoint: As it was loaded; its loops are changed where a validation is due.
    """
    points = checkpoint.get(KEY)
    if points is None:
        return
    if points["is_validation_due"] and trainer.enable_validation:
        _begin_in_validation(checkpoint["loops"]["fit_loop"])
        loop = trainer.fit_loop.epoch_loop
        if 0 < loop.max_steps <= checkpoint["global_step"]:
            loop.max_steps = checkpoint["global_step"] + 1  # until the validation begins: Lightning would end before it
    if not trainer.is_global_zero:
        return
    step = int(points["next_step"]) - 1
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            _return_to(logger, step, points["time"])
        if points["metrics"]:
            logger.log_metrics(points["metrics"], step)
        logger.save()


def enter_folders(trainer: L.Trainer, checkpoint: Mapping[str, Any]) -> None:
    """Let a resumed run's TensorBoard loggers go on in the folders that the checkpoint's run has filled.

    A logger whose version is set goes on in its folder by itself; without a version Lightning would begin a new one.

    Args:
        trainer: Not yet started.
        checkpoint: What `CheckpointFiles` has saved.
    """
    folders = checkpoint.get(KEY, {}).get("folders", [])
    for logger, folder in zip(trainer.loggers, folders, strict=False):
        if not isinstance(logger, TensorBoardLogger) or logger._version is not None or folder is None:
            continue
        if Path(folder["root"]).resolve() == Path(logger.root_dir).resolve():
            logger._version = folder["version"]


def _begin_in_validation(fit_loop: dict[str, Any]) -> None:
    """Make a state that was saved before a validation one that was saved inside it; Lightning would leave it out."""
    training = fit_loop["epoch_loop.batch_progress"]
    for part in ("total", "current"):
        training[part]["completed"] = training[part]["processed"]
    validation = fit_loop["epoch_loop.val_loop.batch_progress"]
    for part in ("total", "current"):
        validation[part] = {"ready": 0, "started": 0, "processed": 0, "completed": 0}
    validation["total"] |= {"ready": 1, "started": 1}


def begin(trainer: L.Trainer) -> None:
    """Mark the start of a run in its event files; a reader takes later starts for restarts only after a first one."""
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger) and trainer.is_global_zero:
            _start_at(logger, 0)


def _start_at(logger: TensorBoardLogger, step: int) -> None:
    """Tell readers that points of this step and later ones that stand before this mark count no more."""
    from tensorboard.compat.proto.event_pb2 import Event, SessionLog

    event = Event(session_log=SessionLog(status=SessionLog.START))
    logger.experiment._get_file_writer().add_event(event, max(0, step))


def _return_to(logger: TensorBoardLogger, step: int, time_saved: float) -> None:
    """Tell readers that points logged after a time count no more: their steps are taken again."""
    from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
    from tensorboard.compat.proto.event_pb2 import Event

    kept: list[Event] = []
    for path in sorted(Path(logger.log_dir).glob("events.out.tfevents.*")):
        for record in RawEventFileLoader(str(path)).Load():
            event = Event.FromString(record)
            if event.HasField("session_log") and event.step <= step:
                kept.clear()
            elif event.HasField("summary") and event.step == step and event.wall_time <= time_saved:
                kept.append(event)
    _start_at(logger, step)
    for event in kept:
        logger.experiment._get_file_writer().add_event(event, step, event.wall_time)
