"""Settings of the trainer that Lightning would take and that cannot be meant: refused before anything is built."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import lightning.pytorch as pl
import torch
from jsonargparse import Namespace
from lightning.pytorch.callbacks import BatchSizeFinder, LearningRateFinder

from lightning_opd.cli.outputs import check_output
from lightning_opd.errors import ConfigError, MissingFileError
from lightning_opd.modules.checkpoint_files import damage

LOWEST = {
    "accumulate_grad_batches": 1,
    "check_val_every_n_epoch": 1,
    "gradient_clip_val": 0,
    "log_every_n_steps": 0,
    "num_sanity_val_steps": -1,
}
MAX_CPU_PROCESSES = 64
"""Most processes on a machine's CPU; more are a slip of the finger that would fill its memory."""

CHOSEN_LATER = {"last", "auto", "best", "hpc"}
"""Words of `--ckpt_path` that stand for a file."""


def check_trainer(trainer: Namespace) -> None:
    """Refuse numbers of the trainer that are out of range, and an output folder that cannot be one.

    Raises:
        ConfigError: With the setting, its value and what would do.
    """
    for name, lowest in LOWEST.items():
        value = trainer.get(name)
        if value is not None and not value >= lowest:
            msg = f"`trainer.{name}` must be at least {lowest}, got {value}. Leave it out for the default."
            raise ConfigError(msg)
    interval = trainer.get("val_check_interval")
    if isinstance(interval, int | float) and not interval > 0:
        msg = (
            f"`trainer.val_check_interval` must be positive, got {interval}. `trainer.limit_val_batches: 0` switches "
            "validation off."
        )
        raise ConfigError(msg)
    _check_devices(trainer.get("devices"), str(trainer.get("accelerator")))
    if trainer.get("default_root_dir") is not None:
        check_output(Path(str(trainer.default_root_dir)), "trainer.default_root_dir")


def check_seed(seed: object) -> None:
    """Refuse a seed that numpy does not take.

    Raises:
        ConfigError: With the seed and its range.
    """
    if isinstance(seed, int) and not 0 <= seed < 2**32:
        msg = f"`seed_everything` must lie between 0 and 2**32 - 1, got {seed}."
        raise ConfigError(msg)


def check_student(model: object) -> None:
    """Refuse a module whose student is null: a parser takes that for a setting that is left out.

    Raises:
        ConfigError: With what to give.
    """
    settings = getattr(model, "init_args", None)
    if isinstance(settings, Namespace) and "student" in settings and settings.student is None:
        msg = "`model.student` must be given, got null. Give a folder or a hub name as `model.student.path`."
        raise ConfigError(msg)


def check_callbacks(trainer: pl.Trainer) -> None:
    """Refuse callbacks that look for a number where none of these modules has it.

    Raises:
        ConfigError: With the callback and the setting to choose oneself.
    """
    for kind, setting in ((LearningRateFinder, "model.optimizer"), (BatchSizeFinder, "data.prompts_per_batch")):
        if any(isinstance(callback, kind) for callback in trainer.callbacks):  # type: ignore[attr-defined]  # set by Lightning
            msg = (
                f"`trainer.callbacks`: `{kind.__name__}` cannot work here: a training step needs a whole rollout batch "
                f"of the policy itself. Leave it out and choose `{setting}`."
            )
            raise ConfigError(msg)


def _check_devices(devices: object, accelerator: str) -> None:
    text = str(devices)
    count = int(text) if text.lstrip("-").isdigit() else 1
    if count < 1 and count != -1:
        msg = f"`trainer.devices` must be at least 1, or -1 for all, got {count}."
        raise ConfigError(msg)
    if accelerator == "cpu" and count > max(MAX_CPU_PROCESSES, os.cpu_count() or 1):
        msg = f"`trainer.devices` asks for {count} processes on {os.cpu_count()} CPU cores. Lower it."
        raise ConfigError(msg)


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
