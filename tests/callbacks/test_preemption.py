from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from typing_extensions import override

from lightning_opd.callbacks import ExportHuggingFace, Preemption
from lightning_opd.callbacks.preemption import _requeue, preempted
from lightning_opd.processes import SIGNALS
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


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
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


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Put a `scontrol` of these lines of shell on the path, or none; return where it notes its arguments."""
    monkeypatch.setenv("SLURM_JOB_ID", "4242")
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))

    def install(lines: str) -> Path:
        if lines:
            (folder / "scontrol").write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/called\n{lines}\n')
            (folder / "scontrol").chmod(0o755)
        return tmp_path / "called"

    return install


def test_a_job_is_requeued_after_its_checkpoint_and_goes_on_to_the_same_bits(
    world: Path, tmp_path: Path, slurm: Callable[[str], Path]
) -> None:
    called = slurm(f"[ -s {tmp_path}/run/checkpoints/last.ckpt ] && echo saved >> {tmp_path}/called")
    _, expected = fitted(world, tmp_path / "whole")
    trainer, _ = fitted(world, tmp_path / "run", Sender(signal.SIGUSR1, 2), Preemption())
    assert trainer.global_step == 2
    assert called.read_text() == "requeue 4242\nsaved\n"
    _, state = fitted(world, tmp_path / "run", ckpt_path=str(tmp_path / "run" / "checkpoints" / "last.ckpt"))
    assert largest_difference(state, expected) == 0.0


@pytest.mark.parametrize(
    ("lines", "why"),
    [("", "No such file or directory"), ("echo no such job >&2; exit 3", "no such job")],
    ids=["missing", "failing"],
)
def test_a_job_that_cannot_be_requeued_is_no_failure(lines: str, why: str, slurm: Callable[[str], Path]) -> None:
    slurm(lines)
    with pytest.warns(UserWarning, match=f"`scontrol requeue 4242` failed .*{why}.*submit the job again") as said:
        _requeue()
    assert len(said) == 1
    assert "\n" not in str(said[0].message)


def wait_forever(is_ready: Any) -> None:
    is_ready.set()
    time.sleep(600)


def test_a_process_that_is_forked_off_ends_by_signals_as_any_other(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    before = signal.getsignal(signal.SIGTERM)
    with Preemption().answering(make_trainer(tmp_path)):
        is_ready = context.Event()
        worker = context.Process(target=wait_forever, args=(is_ready,))
        worker.start()
        assert is_ready.wait(10)
        worker.terminate()  # as a pool ends its workers
        worker.join(10)
    assert worker.exitcode == -signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is before


def be_sent(number: signal.Signals, answering: AbstractContextManager[None]) -> None:
    with answering:
        os.kill(os.getpid(), number)
        time.sleep(1)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_where_nothing_is_trained_a_signal_leaves_at_once(
    number: signal.Signals, tmp_path: Path, slurm: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    called = slurm("true")
    before = {n: signal.getsignal(n) for n in SIGNALS}
    signal.signal(signal.SIGINT, signal.default_int_handler)  # not as in a background job, which ignores it
    try:
        with pytest.raises(SystemExit) as left:
            be_sent(number, Preemption().answering(make_trainer(tmp_path)))
        os.kill(os.getpid(), number)  # a second one changes nothing
        time.sleep(0.05)
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)
    assert left.value.code == 128 + number
    assert capsys.readouterr().err.count(f"stopped by {number.name}") == 1
    assert called.exists() == (number == signal.SIGUSR1)  # requeued: the rest of the job is still to do
