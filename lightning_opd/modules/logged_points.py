"""Logged points of steps around a checkpoint: none is lost, none is there twice, when a run goes on from it."""

from __future__ import annotations

import csv
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L  # Lightning's own convention
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from typing_extensions import override

KEY = "logged_points"
"""Where a checkpoint keeps what this file knows."""
FILES = (TensorBoardLogger, CSVLogger)
"""Loggers that write files, in which a resumed run goes on."""


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
        metrics = {**late_metrics, **logged, "epoch": trainer.current_epoch}
    is_due = is_inside and fetcher is not None and loop._should_check_val_fx(fetcher)
    folders = [
        {"root": logger.root_dir, "version": logger.version, "num_rows": _num_rows(logger)}
        if isinstance(logger, FILES)
        else None
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

    Event files stay as they are: readers are told which points count no more. Tables lose these rows.

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
    folders = [*points.get("folders", ()), *[None] * len(trainer.loggers)]
    for logger, folder in zip(trainer.loggers, folders, strict=False):
        if isinstance(logger, TensorBoardLogger):
            _return_to(logger, step, points["time"])
        elif isinstance(logger, CSVLogger) and folder is not None and "num_rows" in folder:
            _cut(logger, folder["num_rows"])
        if points["metrics"]:
            logger.log_metrics(points["metrics"], step)
        logger.save()


def enter_folders(trainer: L.Trainer, checkpoint: Mapping[str, Any]) -> None:
    """Let a resumed run's loggers go on in the folders, and tables, that the checkpoint's run has filled.

    A logger whose version is set goes on in its folder by itself; without a version Lightning would begin a new one.
    It would also delete a table that it finds.

    Args:
        trainer: Not yet started.
        checkpoint: What `CheckpointFiles` has saved.
    """
    folders = checkpoint.get(KEY, {}).get("folders", [])
    for logger, folder in zip(trainer.loggers, folders, strict=False):
        if not isinstance(logger, FILES) or folder is None:
            continue
        root = str(logger.root_dir)
        is_same = "://" not in root and Path(folder["root"]).resolve() == Path(root).resolve()
        if is_same and logger._version is None:
            logger._version = folder["version"]
        if is_same and isinstance(logger, CSVLogger) and trainer.is_global_zero and logger._experiment is None:
            logger._experiment = _GoingOn(logger.log_dir)


class _GoingOn(ExperimentWriter):
    """Adds rows to a table that is there, which Lightning's own writer deletes."""

    def __init__(self, log_dir: str) -> None:
        super().__init__(log_dir)
        path = Path(self.metrics_file_path)
        self.metrics_keys = _rows(path)[0] if path.is_file() else []

    @override
    def _check_log_dir_exists(self) -> None:
        """Leave everything as it is."""


def _rows(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Return the names of a table's columns, and its rows."""
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        rows = list(reader)
    return list(reader.fieldnames or ()), rows


def _num_rows(logger: TensorBoardLogger | CSVLogger) -> int:
    """Return how many rows a logger's table has, written or not; 0 where it has none."""
    if not isinstance(logger, CSVLogger) or not isinstance(logger._experiment, ExperimentWriter):
        return 0  # also on all processes but the first
    path = Path(logger._experiment.metrics_file_path)
    return len(logger._experiment.metrics) + (len(_rows(path)[1]) if path.is_file() else 0)


def _cut(logger: CSVLogger, num_rows: int) -> None:
    """Take from a table the rows that were logged after so many: their steps are taken again."""
    path = Path(logger.log_dir) / ExperimentWriter.NAME_METRICS_FILE
    if not path.is_file():
        return
    columns, rows = _rows(path)
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows[:num_rows])
    partial.replace(path)


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
    for path in sorted(Path(logger.log_dir).glob("events.out.tfevents.*"), key=event_file_place):
        for record in RawEventFileLoader(str(path)).Load():
            event = Event.FromString(record)
            if event.HasField("session_log") and event.step <= step:
                kept.clear()
            elif event.HasField("summary") and event.step == step and event.wall_time <= time_saved:
                kept.append(event)
    _start_at(logger, step)
    for event in kept:
        logger.experiment._get_file_writer().add_event(event, step, event.wall_time)


def event_file_place(path: Path) -> tuple[int, ...]:
    """Return when an event file was begun, and its number in its process: as a name, 10 comes before 9."""
    parts = path.name.split(".")
    return tuple(int(part) if part.isdecimal() else 0 for part in (parts[3], parts[-1]))
