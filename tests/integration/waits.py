"""A run that waits where nothing is trained: one process works, and the first one waits for it in a collective."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback


class Waits(Callback):
    """Never gets through its first batch of a test or a validation."""

    def _wait(self, trainer: L.Trainer) -> None:
        Path(trainer.default_root_dir, f"waits{trainer.global_rank}").touch()
        if trainer.global_rank:
            time.sleep(600)
        trainer.strategy.barrier()

    def on_test_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        self._wait(trainer)

    def on_validation_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        self._wait(trainer)
