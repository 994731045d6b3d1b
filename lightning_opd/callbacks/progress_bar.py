"""One progress bar for rollouts and updates; one plain line per rollout batch where there is no terminal."""

from __future__ import annotations

import math
import time
from typing import Any

import lightning as L  # Lightning's own convention
from lightning.pytorch.callbacks import ProgressBar, Timer
from rich import get_console
from typing_extensions import override

from lightning_opd.callbacks.live_lines import LiveLines, State
from lightning_opd.callbacks.pace import Pace, clock
from lightning_opd.collection import RolloutProducer
from lightning_opd.errors import ConfigError
from lightning_opd.interfaces import OPDCallback, PhaseObserver
from lightning_opd.types import RolloutBatch

PLAIN_SECONDS = 10.0
"""Least time between two lines about a test, a validation or predictions of their own, where there is no terminal."""


class RolloutProgressBar(ProgressBar, OPDCallback, PhaseObserver):
    """Show rollout batches, optimiser steps, the phase, tokens per second and the time left.

    In a terminal it is one bar that stays at the bottom of the screen; elsewhere (a file, a pipe) it is one plain line
    per rollout batch, and one every ten seconds of a `test`, `validate` or `predict`. The phase is `generate` with the
    number of finished responses, `score`, `prepare`, or `update` with the number of micro-batches. Tokens per second
    are response tokens of all processes over the whole time of a rollout batch. The time left follows the last rollout
    batches, with what validation took so far. Supervised training is shown as well; there each optimiser step is a
    batch. The command line adds this bar by itself.

    Args:
        plain: Whether to print lines instead of the bar; null decides by the terminal.
        refresh_per_second: How often the bar is drawn.

    Example:
        >>> trainer = L.Trainer(callbacks=[RolloutProgressBar(plain=True)], logger=False)
    """

    def __init__(self, plain: bool | None = None, refresh_per_second: float = 4.0) -> None:  # a key in YAML
        """Check the number; the screen is taken when a run begins."""
        super().__init__()
        if refresh_per_second <= 0:
            msg = f"`refresh_per_second` must be positive, got {refresh_per_second}."
            raise ConfigError(msg)
        self.plain, self.refresh_per_second = plain, refresh_per_second
        self._is_enabled = True
        self._lines: LiveLines | None = None
        self._pace = Pace(time.monotonic())
        self._phase, self._evaluation = "", ""
        self._num_tokens, self._num_updates, self._total_steps = 0, 1, 0.0
        self._evaluation_began = self._told = 0.0
        self._num_evaluated = 0
        self._metrics: list[str] = []

    @override
    def disable(self) -> None:
        self._is_enabled = False
        self._close()

    @override
    def enable(self) -> None:
        self._is_enabled = True

    @override
    def print(self, *args: Any, **kwargs: Any) -> None:
        get_console().print(*args, **kwargs)

    @override
    def on_phase(self, phase: str, num_done: int, num_total: int) -> None:
        self._phase = f"{phase} {num_done}/{num_total}" if num_total else phase

    @override
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        data = trainer.datamodule  # type: ignore[attr-defined]  # set by Lightning at run time
        self._num_updates = data.updates_per_batch if isinstance(data, RolloutProducer) else 1
        self._total_steps = trainer.estimated_stepping_batches
        self._pace, self._num_tokens = Pace(time.monotonic()), 0
        self._open()

    @override
    def on_rollout_end(self, trainer: L.Trainer, module: L.LightningModule, rollouts: RolloutBatch) -> None:
        self._num_tokens += int(rollouts.num_active_tokens)  # of all ranks

    @override
    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        number = batch_idx % trainer.accumulate_grad_batches
        self._phase = f"update {number + 1}/{trainer.accumulate_grad_batches}"

    @override
    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if isinstance(batch, dict) and "response_mask" in batch:  # supervised: this rank's, of as many as there are
            self._num_tokens += int(batch["response_mask"].sum()) * trainer.world_size
        step = trainer.global_step
        is_over = step % self._num_updates == 0 or step >= self._total_steps
        if trainer.fit_loop._should_accumulate() or not is_over:  # Lightning's own word on the step
            return
        self._read_metrics()
        self._pace.end_batch(time.monotonic(), self._num_tokens)
        self._num_tokens = 0
        if self._is_plain():
            self._print_line([self._counts(), *self._figures(), *self._metrics])

    @override
    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._phase = ""
        self._close()

    def _begin_evaluation(self, name: str, totals: float | list[int | float]) -> None:
        now = time.monotonic()
        if self.trainer.state.fn != "fit":
            self._pace = Pace(now)
        self._evaluation_began = self._told = now
        self._num_evaluated = 0
        self._note_batch(name, totals)
        self._open()

    def _note_batch(self, name: str, totals: float | list[int | float]) -> None:
        total = sum(totals) if isinstance(totals, list) else totals
        self._evaluation = f"{name} {min(self._num_evaluated + 1, total):.0f}/{total:.0f}"

    def _end_batch(self, name: str, totals: float | list[int | float]) -> None:
        """Count a batch that was evaluated, of any data loader; outside of a fit, say so from time to time."""
        self._num_evaluated += 1
        self._note_batch(name, totals)
        now, total = time.monotonic(), sum(totals) if isinstance(totals, list) else totals
        if self.trainer.state.fn == "fit" or not self._is_plain() or now - self._told < PLAIN_SECONDS:
            return
        self._told, elapsed = now, self._pace.elapsed(now)
        left = elapsed * max(0.0, total / self._num_evaluated - 1)
        self._print_line(
            [f"{name} {self._num_evaluated}/{total:.0f}", f"{clock(elapsed)} elapsed", f"{clock(left)} left"]
        )

    def _end_evaluation(self, trainer: L.Trainer) -> None:
        self._pace.pause(time.monotonic() - self._evaluation_began)
        self._evaluation = self._phase = ""
        if trainer.state.fn != "fit":
            self._close()

    def _num_val_batches(self) -> list[int | float]:
        return self.trainer.num_sanity_val_batches if self.trainer.sanity_checking else self.trainer.num_val_batches

    @override
    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._begin_evaluation("validate", self._num_val_batches())

    @override
    def on_validation_batch_end(self, trainer: L.Trainer, *args: Any, **kwargs: Any) -> None:
        self._end_batch("validate", self._num_val_batches())

    @override
    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._end_evaluation(trainer)
        self._read_metrics()
        shown = {name: value for name, value in trainer.callback_metrics.items() if name.count("/") == 1}
        metrics = [f"{name} {float(value):.3f}" for name, value in shown.items() if name.startswith("val/")]
        is_shown = self._is_plain() and trainer.state.fn == "fit" and not trainer.sanity_checking
        if is_shown and metrics:
            self._print_line([f"validation after step {trainer.global_step}", *metrics])

    @override
    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._begin_evaluation("test", trainer.num_test_batches)

    @override
    def on_test_batch_end(self, trainer: L.Trainer, *args: Any, **kwargs: Any) -> None:
        self._end_batch("test", trainer.num_test_batches)

    @override
    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._end_evaluation(trainer)

    @override
    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._begin_evaluation("predict", trainer.num_predict_batches)

    @override
    def on_predict_batch_end(self, trainer: L.Trainer, *args: Any, **kwargs: Any) -> None:
        self._end_batch("predict", trainer.num_predict_batches)

    @override
    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._end_evaluation(trainer)

    @override
    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._close()

    @override
    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._close()

    def _is_plain(self) -> bool:
        if not self._is_enabled:
            return False
        is_bar = get_console().is_terminal and not get_console().is_dumb_terminal
        return not is_bar if self.plain is None else self.plain

    def _open(self) -> None:
        if self._is_enabled and not self._is_plain() and self._lines is None:
            is_training = self.trainer.state.fn == "fit"
            self._lines = LiveLines(self.state, self.refresh_per_second, stays=is_training)

    def _close(self) -> None:
        if self._lines is not None:
            self._lines.close()
            self._lines = None

    def state(self) -> State:
        """Return what the bar shows: counts, phase, the fraction that is done if known, and figures."""
        if self._trainer is None or self.trainer.state.fn != "fit":
            number, _, total = self._evaluation.rpartition(" ")[2].partition("/")
            fraction = (int(number) - 1) / int(total) if total.isdigit() and int(total) else None
            return self._evaluation, self._phase, fraction, [f"{clock(self._pace.elapsed(time.monotonic()))} elapsed"]
        phase = " · ".join(text for text in (self._evaluation, self._phase) if text)
        is_known = 0 < self._total_steps < math.inf
        fraction = min(1.0, self.trainer.global_step / self._total_steps) if is_known else None
        return self._counts(), phase, fraction, [*self._figures(), *self._metrics]

    def _counts(self) -> str:
        step, total = self.trainer.global_step, self._total_steps
        counts = f"step {step}/{total:.0f}" if 0 < total < math.inf else f"step {step}"
        if not isinstance(self.trainer.datamodule, RolloutProducer):  # type: ignore[attr-defined]  # set by Lightning
            return counts
        done, all_batches = -(-step // self._num_updates), math.inf if total <= 0 else total / self._num_updates
        return f"batch {done}" + (f"/{math.ceil(all_batches)}" if all_batches < math.inf else "") + f" · {counts}"

    def _figures(self) -> list[str]:
        now = time.monotonic()
        rate, left = self._pace.tokens_per_second(), None
        if 0 < self._total_steps < math.inf:
            steps = max(0.0, self._total_steps - self.trainer.global_step)
            left = self._pace.seconds_left(math.ceil(steps / self._num_updates), now)
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]  # set by Lightning at run time
            if isinstance(callback, Timer) and (limit := callback.time_remaining()) is not None:
                left = limit if left is None else min(left, limit)
        return [
            f"{clock(self._pace.elapsed(now))} elapsed",
            f"{clock(left)} left",
            *([] if rate is None else [f"{rate:,.0f} tokens/s"]),
        ]

    def _read_metrics(self) -> None:
        """Keep the metrics: on every rank, and never while the screen is drawn, since reading may reduce over ranks."""
        self._metrics = [f"{name} {float(value):.3f}" for name, value in self.trainer.progress_bar_metrics.items()]

    def _print_line(self, parts: list[str]) -> None:
        if self.trainer.is_global_zero:
            print(" · ".join(parts), flush=True)  # noqa: T201  # as wide as it is, unlike the console's
