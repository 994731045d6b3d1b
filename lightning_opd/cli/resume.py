"""Where a `fit` goes on: the words `last` and `auto` of `--ckpt_path`, and what a killed run has left beside."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger

from lightning_opd.collection.resume import check_resume
from lightning_opd.errors import ConfigError
from lightning_opd.modules.checkpoint_files import peek, remove_partial_files
from lightning_opd.modules.logged_points import enter_folders
from lightning_opd.modules.student import StudentModule

if TYPE_CHECKING:
    import lightning.pytorch as pl


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
    unnamed = [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger) and not logger._version]
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
            check_resume(checkpoint.get("settings", {}), module.resume_settings(trainer, data), module.allow_changed)
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
