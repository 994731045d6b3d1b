"""Settings of the trainer that Lightning would take and that cannot be meant: refused before anything is built."""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib.util import find_spec

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import BatchSizeFinder, LearningRateFinder

from lightning_opd.errors import ConfigError, MissingPackageError

LOWEST = {
    "accumulate_grad_batches": 1,
    "check_val_every_n_epoch": 1,
    "gradient_clip_val": 0,
    "log_every_n_steps": 0,
    "num_sanity_val_steps": -1,
}
MAX_CPU_PROCESSES = 64
"""Most processes on a machine's CPU; more are a slip of the finger that would fill its memory."""


def check_trainer(trainer: Mapping[str, object]) -> None:
    """Refuse numbers of the trainer that are out of range.

    Args:
        trainer: Its settings by their names.

    Raises:
        ConfigError: With the setting, its value and what would do.
    """
    for name, lowest in LOWEST.items():
        value = trainer.get(name)
        if isinstance(value, int | float) and not value >= lowest:
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
    _check_profiler(trainer.get("profiler"))
    for name in ("accelerator", "profiler", "strategy"):
        value = trainer.get(name)
        if isinstance(value, str) and "class_path" in value:  # a parser has read it as a word
            msg = (
                f"`trainer.{name}` names a class that does not take these arguments: `{value}`. "
                f"`--trainer.{name}.help CLASS` lists its own."
            )
            raise ConfigError(msg)


def _check_profiler(profiler: object) -> None:
    """Refuse profilers of hardware or packages that are not here."""
    kind = str(profiler.get("class_path") if isinstance(profiler, Mapping) else profiler).rpartition(".")[2]
    if kind in {"xla", "XLAProfiler"} and find_spec("torch_xla") is None:
        msg = "`trainer.profiler`: `xla` needs the package torch_xla, which is missing. Use `simple` or `pytorch`."
        raise MissingPackageError(msg)
    settings = profiler.get("init_args") if isinstance(profiler, Mapping) else None
    if isinstance(settings, Mapping) and settings.get("emit_nvtx") and not torch.cuda.is_available():
        msg = "`trainer.profiler.emit_nvtx` needs a GPU of NVIDIA, and there is none. Leave it out."
        raise ConfigError(msg)


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

    Args:
        model: Its class path and arguments.

    Raises:
        ConfigError: With what to give.
    """
    settings = model.get("init_args") if isinstance(model, Mapping) else None
    if isinstance(settings, Mapping) and "student" in settings and settings["student"] is None:
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
