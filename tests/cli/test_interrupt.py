"""Ctrl-C outside training, for example while a model is exported."""

from __future__ import annotations

import signal
from pathlib import Path

import lightning as L
import pytest
from lightning.pytorch.callbacks import Callback

from lightning_opd.cli.main import main
from tests.test_user_errors import command


class Interrupted(Callback):
    """Ends as a user does who has seen enough."""

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        raise KeyboardInterrupt


def test_an_interrupt_after_training_has_its_own_status(world: Path, tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT)
    words = command(world, tmp_path, "--trainer.callbacks+=tests.cli.test_interrupt.Interrupted")
    with pytest.raises(SystemExit) as caught:
        main(words)
    signal.signal(signal.SIGINT, before)  # Lightning ignores it from then on
    assert caught.value.code == 128 + signal.SIGINT
