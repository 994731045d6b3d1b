from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from typing_extensions import override

from lightning_opd.callbacks import ExportHuggingFace, Preemption
from lightning_opd.callbacks.preemption import preempted
from tests.world import largest_difference, make_data, make_module, make_trainer


class Sender(Callback):
    """Sends this process a signal in the middle of a micro-batch."""

    def __init__(self, number: signal.Signals, batch: int) -> None:
        self.number, self.batch = number, batch

    @override
    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: torch.Tensor) -> None:
        if trainer.fit_loop.total_batch_idx == self.batch:
            os.kill(os.getpid(), self.number)


def fitted(world: Path, folder: Path, *callbacks: Callback, **settings: Any) -> tuple[L.Trainer, dict[str, Any]]:
    trainer = make_trainer(folder, *callbacks, max_steps=4, accumulate_grad_batches=2)
    module = make_module(world)
    trainer.fit(module, make_data(), **settings)
    return trainer, module.state_dict()


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, *[pytest.param(n, marks=pytest.mark.slow) for n in (signal.SIGINT, signal.SIGUSR1)]]
)
def test_a_signal_ends_the_run_whole_at_the_next_step(world: Path, tmp_path: Path, number: signal.Signals) -> None:
    handlers = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)}
    _, expected = fitted(world, tmp_path / "whole")
    preemption = Preemption()
    trainer, _ = fitted(world, tmp_path / "run", Sender(number, 2), preemption, ExportHuggingFace())
    assert trainer.global_step == 2  # the signal came in the first micro-batch of the second step
    assert preempted(trainer) is preemption
    assert preemption.received == number
    assert preemption.checkpoint == tmp_path / "run" / "checkpoints" / "last.ckpt"
    assert not (tmp_path / "run" / "model").exists()  # half-trained: nothing to export
    assert {n: signal.getsignal(n) for n in handlers} == handlers
    trainer, state = fitted(world, tmp_path / "run", Preemption(), ckpt_path=str(preemption.checkpoint))
    assert trainer.global_step == 4
    assert preempted(trainer) is None
    assert largest_difference(state, expected) == 0.0


def test_without_a_signal_nothing_is_saved(world: Path, tmp_path: Path) -> None:
    trainer, _ = fitted(world, tmp_path, Preemption())
    assert trainer.global_step == 4
    assert not (tmp_path / "checkpoints").exists()
