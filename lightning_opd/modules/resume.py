"""Where a `fit` goes on: the words `last` and `auto` of `--ckpt_path`, and what a killed run has left beside."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_opd.collection.resume import check_resume
from lightning_opd.errors import ConfigError, MissingFileError
from lightning_opd.modules.checkpoint_files import damage, peek, remove_partial_files
from lightning_opd.modules.logged_points import FILES, enter_folders
from lightning_opd.modules.student import StudentModule

if TYPE_CHECKING:
    import lightning.pytorch as pl

CHOSEN_LATER = {"last", "auto", "best", "hpc"}
"""Words of `--ckpt_path` that stand for a file."""


def prepare_resume(trainer: pl.Trainer, module: pl.LightningModule, data: object, ckpt_path: str | None) -> str | None:
    """Return the checkpoint that `fit` goes on from, or None to start anew.

    Temporary files of a save that was killed are removed, and the loggers go on in their folders.

    Args:
        trainer: Not yet started.
        module: What it will train; settings that do not fit the checkpoint are refused before anything is loaded.
        data: Its data module.
        ckpt_path: A path; `last` for the newest last checkpoint; `auto` for the same, or none where there is none yet.

    Raises:
        ConfigError: `last` is asked for, and there is none; or the checkpoint is of a run with other settings.
    """
    unnamed = [logger for logger in trainer.loggers if isinstance(logger, FILES) and logger._version is None]
    folders = _checkpoint_folders(trainer)
    if trainer.is_global_zero:
        for folder in folders:
            remove_partial_files(folder)
    if ckpt_path in {"last", "auto"}:
        found = [path for folder in folders for path in folder.glob("last*.ckpt")]
        if not found and ckpt_path == "last":
            named = ", ".join(f"`{folder}`" for folder in folders)
            msg = (
                f"`--ckpt_path last`: there is no last checkpoint in {named}. Leave the option out to start anew, or "
                "give `--ckpt_path auto`, which starts anew where there is none."
            )
            raise ConfigError(msg)
        ckpt_path = str(max(found, key=lambda path: path.stat().st_mtime_ns)) if found else None
    for logger in unnamed:
        logger._version = None  # asking for a folder names it
    if ckpt_path is not None:
        checkpoint = peek(Path(ckpt_path))
        if isinstance(module, StudentModule):
            check_resume(checkpoint.get("settings", {}), module.recorded_settings(trainer, data), module.allow_changed)
        enter_folders(trainer, checkpoint)
    return ckpt_path


def _checkpoint_folders(trainer: pl.Trainer) -> list[Path]:
    """Return the folders that last checkpoints may lie in; those of Lightning's own numbering in all versions."""
    folders = [Path(trainer.default_root_dir) / "checkpoints"]
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint) and callback.dirpath is not None:
            folders.append(Path(callback.dirpath))
        elif isinstance(callback, ModelCheckpoint):
            for logger in trainer.loggers[:1]:
                folders += Path(str(logger.save_dir)).joinpath(str(logger.name)).glob("version_*/checkpoints")
    return list(dict.fromkeys(folder for folder in folders if "://" not in str(folder)))


def check_resumable(path: str | None, *, weights_only: bool | None) -> None:
    """Refuse a checkpoint of something else; damaged ones are left to `CheckpointFiles`, which knows the one before.

    Args:
        path: What `--ckpt_path` says.
        weights_only: What `--weights_only` says; False reads pickled classes, too.

    Raises:
        ConfigError: It is no checkpoint of a training.
    """
    if path is None or path in CHOSEN_LATER or "://" in path:
        return
    file = Path(path)
    if file.is_dir():
        if not any((file / name).is_file() for name in (".metadata", "meta.pt")):
            msg = f"`--ckpt_path {path}` is a folder without a sharded checkpoint. Name the file, such as last.ckpt."
            raise MissingFileError(msg)
        return
    if weights_only is False or damage(file) is not None:
        return
    check_content(file)


def check_content(file: Path) -> None:
    """Refuse a file that torch saved and that no training did; its tensors are not read.

    Raises:
        ConfigError: With what it holds instead.
    """
    try:
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except (pickle.UnpicklingError, RuntimeError, KeyError, ValueError, EOFError) as error:
        reason = str(error).splitlines()[0]
        msg = f"`{file}` is no checkpoint of a training that can be read safely ({reason}). Name one that `fit` saved."
        raise ConfigError(msg) from None
    keys = sorted(map(str, content)) if isinstance(content, dict) else []
    if "pytorch-lightning_version" not in keys or "state_dict" not in keys:
        held = f"the keys {keys[:5]}" if keys else type(content).__name__
        msg = f"`{file}` is no checkpoint of a training: it holds {held}. Name one that `fit` saved, such as last.ckpt."
        raise ConfigError(msg)
