"""Ends a run that is told to stop at its next optimiser step, with a whole checkpoint."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import lightning as L  # Lightning's own convention
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_only, rank_zero_warn
from typing_extensions import override

from lightning_opd.processes import SIGNALS, hearing, launcher_id, tell_launcher
from lightning_opd.servers import ServersDownError

SECONDS_TO_LEAVE = 5.0
"""Until a process ends whose main thread does not hear that it should."""
SECONDS_TO_REQUEUE = 30.0


class Preemption(Callback):
    """Stop at the next optimiser step when a signal asks for it, on all processes together, and save.

    SIGTERM (a scheduler's), SIGINT (Ctrl-C) and SIGUSR1 (a scheduler's warning) only set a flag; the processes agree
    on it after each optimiser step, so that no process is in the middle of a collective. A second SIGINT ends at
    once. After SIGUSR1 under SLURM the job is requeued. The command line adds this callback by itself and ends with
    status 128 + the signal's number; where nothing is trained (models that load, a sanity check, `test`) it does so at
    once. A run whose servers no longer answer is saved, too.

    Attributes:
        received: The signal that ended the run, or None.
        checkpoint: Where the run can go on from, after a signal.
    """

    def __init__(self) -> None:
        """Wait for the training to begin."""
        self.received: signal.Signals | None = None
        self.checkpoint: Path | None = None
        self._flag = 0
        self._is_training = self._is_answering = self._is_leaving = False
        self._before: dict[signal.Signals, Any] = {}
        self._limit_val_batches: int | float | None = None

    @contextlib.contextmanager
    def answering(self, trainer: L.Trainer) -> Iterator[None]:
        """Answer signals from now on, also where nothing is trained: there the run ends at once, on all processes.

        Lightning's own answer would be a collective in the middle of another one.

        Args:
            trainer: Not yet started.
        """
        connector, over = trainer._signal_connector, threading.Event()
        connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
        self._is_answering = True
        self._take(number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN)
        try:
            with hearing(lambda number: self._see_to_it(number, over)):
                yield
        finally:
            over.set()
            self._is_answering = False
            if self.received is None and not self._is_leaving:  # else further ones change nothing
                self._give_back()

    def _take(self, numbers: Iterable[signal.Signals]) -> None:
        for number in numbers:
            self._before.setdefault(number, signal.getsignal(number))
            signal.signal(number, self._answer)

    def _give_back(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _answer(self, number: int, frame: FrameType | None) -> None:
        if self._is_training:
            if number == signal.SIGINT and self._flag == signal.SIGINT:
                signal.default_int_handler(number, frame)  # asked twice
            self._flag = self._flag or number
        elif self.received is None and not self._is_leaving and not launcher_id():
            self._is_leaving = True
            _take_leave(number)
            raise SystemExit(128 + number)

    def _see_to_it(self, number: int, over: threading.Event) -> None:
        """End this process in the end where its main thread does not hear of a signal, or forgets it."""
        if self._is_training or self.received is not None:
            return
        if launcher_id():
            tell_launcher(number)
        elif not over.wait(SECONDS_TO_LEAVE):
            if not self._is_leaving:
                _take_leave(number)
            os._exit(128 + number)

    @override
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:  # after Lightning's own
        self._take(SIGNALS)
        self._is_training = True

    @override
    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.fit_loop._should_accumulate():  # an optimiser step must not be cut
            return
        flag = torch.tensor([float(self._flag)], device=trainer.strategy.root_device)
        agreed = int(trainer.strategy.reduce(flag, reduce_op="max"))
        if not agreed or self.received is not None:
            return
        self.received, self.checkpoint = signal.Signals(agreed), _last_checkpoint(trainer)
        trainer.save_checkpoint(self.checkpoint, weights_only=False)
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, ModelCheckpoint):
                callback._last_global_step_saved = trainer.global_step  # the end of a cut epoch is nothing to save
        if not trainer._logger_connector.should_update_logs:
            # Lightning would log a stop's step even between two logged ones
            trainer.log_every_n_steps = 0  # type: ignore[attr-defined]  # set by Lightning at run time
        self._limit_val_batches, trainer.limit_val_batches = trainer.limit_val_batches, 0  # ... and validate at a stop
        trainer.should_stop = True
        rank_zero_info(f"{self.received.name} after step {trainer.global_step}: saved `{self.checkpoint}`.")

    @override
    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        if isinstance(exception, ServersDownError) and trainer.training and trainer.global_step:  # on every process
            self.checkpoint = _last_checkpoint(trainer)
            trainer.save_checkpoint(self.checkpoint, weights_only=False)
            rank_zero_info(f"Saved after step {trainer.global_step}: `{self.checkpoint}`.")
        self._end_training()

    @override
    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._end_training()
        if self._limit_val_batches is not None:
            trainer.limit_val_batches = self._limit_val_batches
        if self.received == signal.SIGUSR1:
            _requeue()

    def _end_training(self) -> None:
        self._is_training = False
        if not self._is_answering:
            self._give_back()


def preempted(trainer: L.Trainer) -> Preemption | None:
    """Return the callback that stopped a run at a signal before its end, or None."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]  # set by Lightning at run time
    return next((c for c in callbacks if isinstance(c, Preemption) and c.received), None)


def _last_checkpoint(trainer: L.Trainer) -> Path:
    """Return the file from which the run goes on: that of its `ModelCheckpoint`, or `checkpoints/last.ckpt`."""
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint) and callback.dirpath:
            return Path(callback.dirpath) / "last.ckpt"
    return Path(trainer.default_root_dir) / "checkpoints" / "last.ckpt"


@rank_zero_only
def _take_leave(number: int) -> None:
    name = signal.Signals(number).name
    sys.stderr.write(f"stopped by {name}; nothing was being trained, so there is nothing to save.\n")
    sys.stderr.flush()
    if number == signal.SIGUSR1:
        _requeue()


@rank_zero_only
def _requeue() -> None:
    """Put the run's job back into SLURM's queue; where that does not work, say how to do it by hand."""
    if "SLURM_JOB_ID" not in os.environ:
        return
    command = ["scontrol", "requeue", os.environ["SLURM_JOB_ID"]]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=SECONDS_TO_REQUEUE)
    except (OSError, subprocess.SubprocessError) as error:
        said = error.stderr if isinstance(error, subprocess.CalledProcessError) else None
        why = " ".join((said or str(error)).split())
        rank_zero_warn(
            f"`{' '.join(command)}` failed ({why}); the job is not requeued. Run that where SLURM's tools are, or "
            "submit the job again with `--ckpt_path auto`."
        )


def _forget() -> None:
    """Let a process that is forked off, such as a pool's worker, end by the signals that end any process."""
    for number in SIGNALS:
        if isinstance(getattr(signal.getsignal(number), "__self__", None), Preemption):
            signal.signal(number, signal.SIG_DFL)
            signal.set_wakeup_fd(-1)


os.register_at_fork(after_in_child=_forget)
