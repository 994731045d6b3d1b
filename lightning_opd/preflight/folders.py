"""Where a run writes: whether it may, and whether there is enough disk for a checkpoint and an export."""

from __future__ import annotations

import shutil
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import lightning as L  # Lightning's own convention
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_opd.callbacks import ExportHuggingFace
from lightning_opd.errors import ConfigError
from lightning_opd.models import Outline, StudentConfig
from lightning_opd.options.outputs import check_output, nearest
from lightning_opd.preflight.report import Check, in_bytes


@dataclass(frozen=True)
class Output:
    """Something that a run writes.

    Args:
        what: For messages.
        setting: Where its folder is set.
        folder: Where it goes.
        is_checkpoint: Whether it is one to go on from.
        is_small: Whether its size does not matter.
        is_merged: Whether an adapter is exported inside the whole model.
    """

    what: str
    setting: str
    folder: str
    is_checkpoint: bool = False
    is_small: bool = False
    is_merged: bool = True


def outputs(trainer: L.Trainer) -> list[Output]:
    """Return what a run writes and where; folders that are URLs are left out."""
    root = trainer.default_root_dir
    found = [Output("metrics and settings", "trainer.default_root_dir", root, is_small=True)]
    for callback in trainer.callbacks:  # type: ignore[attr-defined]  # set by Lightning
        if isinstance(callback, ModelCheckpoint):
            setting = "dirpath" if callback.dirpath else "trainer.default_root_dir"
            found.append(Output("a checkpoint", setting, str(callback.dirpath or root), is_checkpoint=True))
        elif isinstance(callback, ExportHuggingFace):
            setting = "folder" if callback.folder else "trainer.default_root_dir"
            folder = str(callback.folder or Path(root) / "model")
            found.append(Output("the exported model", setting, folder, is_merged=callback.merge))
    for logger in trainer.loggers:
        if logger.save_dir:
            found.append(Output("metrics", "trainer.logger.save_dir", str(logger.save_dir), is_small=True))
    if trainer.profiler.dirpath:  # type: ignore[attr-defined]  # set by Lightning
        folder = str(trainer.profiler.dirpath)  # type: ignore[attr-defined]
        found.append(Output("a profile", "trainer.profiler.dirpath", folder, is_small=True))
    return [output for output in found if "://" not in output.folder]


def check_writable(found: Sequence[Output]) -> Check:
    """Refuse folders in which nothing can be written; nothing stays behind.

    Args:
        found: From `outputs`.

    Raises:
        ConfigError: With the folder and the setting.
    """
    for output in found:
        check_output(Path(output.folder), output.setting)
    folders = dict.fromkeys(output.folder for output in found)
    return Check("output folders", ", ".join(folders), values={"folders": list(folders)})


def check_disk(trainer: L.Trainer, student: StudentConfig, found: Outline, num_states: float) -> Iterator[Check]:
    """Compare the free space of each disk with what one checkpoint and one export take.

    Args:
        trainer: With its callbacks.
        student: Its settings.
        found: The student without its weights.
        num_states: Numbers that the optimiser keeps for a weight.

    Raises:
        ConfigError: One disk has too little.
    """
    needs: dict[int, list[tuple[Output, int]]] = defaultdict(list)
    for output in outputs(trainer):
        if output.is_small or not nearest(Path(output.folder)).is_dir():  # the latter is a finding of its own
            continue
        size = _size(output, student, found, num_states)
        needs[nearest(Path(output.folder)).stat().st_dev].append((output, size))
    for needed in needs.values():
        free = shutil.disk_usage(nearest(Path(needed[0][0].folder))).free
        total = sum(size for _, size in needed)
        parts = ", ".join(f"{in_bytes(size)} for {output.what}" for output, size in needed)
        if total > free:
            msg = (
                f"The disk of `{needed[0][0].folder}` has {in_bytes(free)} free, and the run writes "
                f"{in_bytes(total)} there ({parts}; a checkpoint holds the weights and {num_states:.2g} optimiser "
                f"states of their size). Free some space, or set `{needed[0][0].setting}` to another disk."
            )
            raise ConfigError(msg)
        text = f"{in_bytes(free)} free, {in_bytes(total)} needed ({parts})"
        yield Check("disk", text, values={"free_bytes": free, "needed_bytes": total})


def _size(output: Output, student: StudentConfig, found: Outline, num_states: float) -> int:
    """Return the bytes that an output takes."""
    if output.is_checkpoint:
        is_half = student.dtype is not None and found.num_trained == found.num_parameters
        width = torch.finfo(getattr(torch, str(student.dtype))).bits // 8 if is_half else 4
        return round((1 + num_states) * width * found.num_trained)
    return found.export_bytes * (found.num_parameters if output.is_merged else found.num_trained)
