"""Reads training curves from TensorBoard event files."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lightning_opd.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True)
class Curve:
    """One logged quantity of one run.

    Args:
        run: Folder of the run, relative to the folder that was searched.
        tag: Name under which it was logged.
        steps: Optimiser steps.
        values: One value per step.
    """

    run: str
    tag: str
    steps: tuple[int, ...]
    values: tuple[float, ...]


def read_curves(folder: Path) -> list[Curve]:
    """Read every scalar curve with at least two points below a folder.

    Args:
        folder: Searched with all its subfolders.

    Raises:
        ConfigError: If there is no event file.
    """
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    runs = sorted({file.parent for file in folder.rglob("events.out.tfevents.*")}) if folder.is_dir() else []
    if not runs:
        msg = f"`curves`: no TensorBoard event file below `{folder}`; give the folder of a training run."
        raise ConfigError(msg)
    curves: list[Curve] = []
    for run in runs:
        events = EventAccumulator(str(run), size_guidance={"scalars": 0})  # 0 keeps every point
        events.Reload()
        for tag in sorted(events.Tags()["scalars"]):
            in_time = sorted(
                events.Scalars(tag), key=lambda event: event.wall_time
            )  # files are read by name: 10 before 9
            points = {event.step: float(event.value) for event in in_time}
            if len(points) > 1:
                name = _run_name(run.relative_to(folder))
                curves.append(Curve(name, tag, tuple(sorted(points)), tuple(points[step] for step in sorted(points))))
    return curves


def _run_name(path: Path) -> str:
    parts = [part for part in path.parts if part != "logs"]
    return "/".join(parts) or "."
