"""Where a run writes: whether it may, and whether there is enough disk for a checkpoint and an export."""

from __future__ import annotations

import shutil
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import lightning as L  # Lightning's own convention
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_opd.callbacks import ExportHuggingFace
from lightning_opd.errors import ConfigError
from lightning_opd.models import Outline, StudentConfig
from lightning_opd.preflight.report import Check

NUM_COPIES = 3
"""Numbers that a checkpoint has for a trained weight: itself, and two states of an optimiser such as AdamW."""


@dataclass(frozen=True)
class Output:
    """Something that a run writes.

    Args:
        what: For messages.
        setting: Where its folder is set.
        folder: Where it goes.
        is_checkpoint: Whether it is one to go on from.
        is_merged: Whether an adapter is exported inside the whole model.
    """

    what: str
    setting: str
    folder: str
    is_checkpoint: bool = False
    is_merged: bool = True


def outputs(trainer: L.Trainer) -> list[Output]:
    """Return what a run writes and where; folders that are URLs are left out."""
    root = trainer.default_root_dir
    found = [Output("metrics and settings", "trainer.default_root_dir", root)]
    for callback in trainer.callbacks:  # type: ignore[attr-defined]  # set by Lightning
        if isinstance(callback, ModelCheckpoint):
            setting = "dirpath" if callback.dirpath else "trainer.default_root_dir"
            found.append(Output("a checkpoint", setting, str(callback.dirpath or root), is_checkpoint=True))
        elif isinstance(callback, ExportHuggingFace):
            setting = "folder" if callback.folder else "trainer.default_root_dir"
            folder = str(callback.folder or Path(root) / "model")
            found.append(Output("the exported model", setting, folder, is_merged=callback.merge))
    return [output for output in found if "://" not in output.folder]


def check_writable(trainer: L.Trainer) -> Check:
    """Refuse folders in which nothing can be written; nothing stays behind.

    Raises:
        ConfigError: With the folder and the setting.
    """
    for output in outputs(trainer):
        place = nearest(Path(output.folder))
        try:
            with tempfile.TemporaryFile(dir=place):
                pass
        except OSError as error:
            msg = (
                f"`{output.folder}` cannot be written ({error.strerror or error}): {output.what} would be lost. Set "
                f"`{output.setting}` to a folder of yours, or correct its rights."
            )
            raise ConfigError(msg) from error
    folders = dict.fromkeys(output.folder for output in outputs(trainer))
    return Check("output folders", ", ".join(folders), values={"folders": list(folders)})


def check_disk(trainer: L.Trainer, student: StudentConfig, found: Outline) -> Iterator[Check]:
    """Compare the free space of each disk with what one checkpoint and one export take.

    Raises:
        ConfigError: One disk has too little.
    """
    needs: dict[int, list[tuple[Output, int]]] = defaultdict(list)
    for output in outputs(trainer)[1:]:
        size = _size(output, student, found)
        needs[nearest(Path(output.folder)).stat().st_dev].append((output, size))
    for needed in needs.values():
        free = shutil.disk_usage(nearest(Path(needed[0][0].folder))).free
        total = sum(size for _, size in needed)
        parts = ", ".join(f"{_gigabytes(size)} for {output.what}" for output, size in needed)
        if total > free:
            msg = (
                f"The disk of `{needed[0][0].folder}` has {_gigabytes(free)} free, and the run writes "
                f"{_gigabytes(total)} there ({parts}; a checkpoint holds the weights and two optimiser states). Free "
                f"some space, or set `{needed[0][0].setting}` to another disk."
            )
            raise ConfigError(msg)
        text = f"{_gigabytes(free)} free, {_gigabytes(total)} needed ({parts})"
        yield Check("disk", text, values={"free_bytes": free, "needed_bytes": total})


def nearest(folder: Path) -> Path:
    """Return the folder itself, or the nearest one above it that exists."""
    return next((path for path in (folder, *folder.absolute().parents) if path.exists()), Path("/"))


def _size(output: Output, student: StudentConfig, found: Outline) -> int:
    """Return the bytes that an output takes."""
    if output.is_checkpoint:
        is_half = student.dtype is not None and found.num_trained == found.num_parameters
        width = torch.finfo(getattr(torch, str(student.dtype))).bits // 8 if is_half else 4
        return NUM_COPIES * width * found.num_trained
    return found.export_bytes * (found.num_parameters if output.is_merged else found.num_trained)


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:,.2f} GB" if size >= 1e7 else f"{size / 1e6:,.2f} MB"
