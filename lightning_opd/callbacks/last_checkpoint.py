"""Keeps one checkpoint to go on from, in the run's own folder."""

from __future__ import annotations

from pathlib import Path

import lightning as L  # Lightning's own convention
from lightning.pytorch.callbacks import ModelCheckpoint
from typing_extensions import override

from lightning_opd.errors import ConfigError


class LastCheckpoint(ModelCheckpoint):
    """Save every few optimiser steps into `checkpoints/last.ckpt` of the trainer's `default_root_dir`.

    `fit --ckpt_path last` goes on from there; `fit --ckpt_path auto` does so where there is one and begins anew where
    there is none, so that the same command serves every start of a run that may be killed.

    Args:
        every_n_steps: Optimiser steps from one checkpoint to the next.
    """

    def __init__(self, every_n_steps: int = 20) -> None:
        """Check the number; the folder is the trainer's."""
        if every_n_steps < 1:
            msg = f"`every_n_steps` must be at least 1, got {every_n_steps}."
            raise ConfigError(msg)
        super().__init__(filename="last", every_n_train_steps=every_n_steps, enable_version_counter=False)

    @override
    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._enter_folder(trainer)
        super().setup(trainer, pl_module, stage)

    @override
    def _find_last_checkpoints(self, trainer: L.Trainer) -> set[str]:  # Lightning looks before `setup`
        self._enter_folder(trainer)
        return super()._find_last_checkpoints(trainer)

    def _enter_folder(self, trainer: L.Trainer) -> None:
        self.dirpath = str(Path(trainer.default_root_dir) / "checkpoints")
