"""Checkpoints that are whole or not there: written beside, checked, and with the one before kept."""

from __future__ import annotations

import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.fabric.utilities.types import _PATH
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from typing_extensions import override

from lightning_opd.errors import CheckpointWriteError, ConfigError, MissingFileError
from lightning_opd.models import check_finite

PARTIAL = ".partial"
"""Ends the name of a checkpoint that is being written; a point begins it."""


class CheckpointFiles(TorchCheckpointIO):
    """Write a checkpoint beside its place, then move it there in one step.

    A process that is killed at any moment leaves the last whole checkpoint. The one before it stays as
    `NAME.previous`, and is loaded with a warning where the last one cannot be read (a disk that loses bytes).
    Weights that are not finite are never written. Remote paths are left to Lightning.
    """

    def __init__(self) -> None:
        """Know no damaged file yet."""
        self._damaged: set[Path] = set()

    @override
    def save_checkpoint(self, checkpoint: dict[str, Any], path: _PATH, storage_options: Any | None = None) -> None:
        check_finite(checkpoint.get("state_dict", {}), f"checkpoint `{path}`")
        if "://" in str(path) or storage_options is not None:
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{target.name}{PARTIAL}")
        try:
            with partial.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
        except (OSError, RuntimeError) as error:  # torch words a full disk as a RuntimeError
            partial.unlink(missing_ok=True)
            last = "the one before is still there" if target.is_file() else "there is none before it"
            msg = f"checkpoint `{target}` could not be written ({error}); {last}. Free space, or name another folder."
            raise CheckpointWriteError(msg) from error
        if target.is_file() and target not in self._damaged:
            previous = previous_of(target)
            previous.unlink(missing_ok=True)
            os.link(target, previous)
        partial.replace(target)
        self._damaged.discard(target)

    @override
    def load_checkpoint(
        self, path: _PATH, map_location: Callable[..., Any] | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        target = Path(path)
        if "://" not in str(path):
            problem = damage(target)
            if problem is not None:
                previous = previous_of(target)
                if not previous.is_file() or damage(previous) is not None:
                    msg = f"checkpoint `{target}` cannot be read: {problem}. Start anew without `--ckpt_path`."
                    raise ConfigError(msg)
                rank_zero_warn(f"checkpoint `{target}` cannot be read: {problem}. Going on from `{previous}`.")
                self._damaged.add(target)
                target = previous
        return super().load_checkpoint(target, map_location or (lambda storage, _: storage), weights_only)

    @override
    def remove_checkpoint(self, path: _PATH) -> None:
        super().remove_checkpoint(path)
        if "://" not in str(path):
            previous_of(Path(path)).unlink(missing_ok=True)


def previous_of(path: Path) -> Path:
    """Return where the checkpoint before this one stays."""
    return path.with_name(f"{path.name}.previous")


def peek(path: Path) -> dict[str, Any]:
    """Return what a checkpoint holds, its tensors left on the disk; empty where it cannot be read without its classes.

    Where the last one is torn, the one before it is read, as `CheckpointFiles` will load that.
    """
    for candidate in (path / "meta.pt" if path.is_dir() else path, previous_of(path)):
        try:
            content = torch.load(candidate, map_location="cpu", mmap=True, weights_only=True)
        except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError):
            continue
        return content if isinstance(content, dict) else {}
    return {}


def remove_partial_files(folder: Path) -> None:
    """Remove the temporary files of saves that were killed."""
    for path in folder.glob(f".*{PARTIAL}"):
        path.unlink(missing_ok=True)


def damage(path: Path) -> str | None:
    """Return what is wrong with a checkpoint's file, or None; every byte of its parts is checked.

    Raises:
        MissingFileError: There is none.
    """
    if not path.exists():
        msg = f"checkpoint `{path}` does not exist; `fit` saves one as `checkpoints/last.ckpt`."
        raise MissingFileError(msg)
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
        if broken is not None:
            return f"its part `{broken}` has lost bytes"
        # torch looks for the parts in its own way; their bytes stay on the disk
        torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except pickle.UnpicklingError:  # it holds more than tensors
        return None
    except Exception as error:  # a wrong byte in a zip file may come out as anything
        size = path.stat().st_size
        return f"it has {size:,} bytes and is no whole checkpoint ({error})" if size else "it is empty"
    return None
