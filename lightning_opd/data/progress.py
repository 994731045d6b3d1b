"""Progress inside a rollout batch: the bar says what is going on while no batch ends."""

from __future__ import annotations

import time

import lightning as L
from lightning.pytorch.callbacks import RichProgressBar, TQDMProgressBar

from lightning_opd.interfaces import PhaseObserver

SECONDS_BETWEEN_UPDATES = 0.2


PHASES = {"rollout": "generate", "score": "score", "prepare": "prepare"}
"""Stage of a rollout batch → what the user reads."""


class RolloutProgress:
    """Tells callbacks what a rollout batch is doing, and puts it into Lightning's own progress bars."""

    def __init__(self, trainer: L.Trainer) -> None:
        """Bind to the trainer whose bar to move."""
        self._trainer = trainer
        self._last = 0.0

    def begin(self, stage: str) -> None:
        """Tell the callbacks that a stage of the rollout batch begins."""
        if stage in PHASES:
            self._tell(PHASES[stage], 0, 0)

    def show(self, phase: str, num_done: int, num_total: int) -> None:
        """Show how far a phase is, a few times a second; finished phases clear the text."""
        self._tell(phase, num_done, num_total)
        now = time.monotonic()
        if num_done < num_total and now - self._last < SECONDS_BETWEEN_UPDATES:
            return
        self._last = now
        text = f"{phase} {num_done}/{num_total}" if num_done < num_total else ""
        bar = self._trainer.progress_bar_callback
        if isinstance(bar, TQDMProgressBar) and bar.is_enabled:
            self._on_tqdm(bar, text)
        elif isinstance(bar, RichProgressBar) and bar.is_enabled and bar.progress is not None:
            self._on_rich(bar, text)

    def _tell(self, phase: str, num_done: int, num_total: int) -> None:
        for callback in self._trainer.callbacks:  # type: ignore[attr-defined]  # set by Lightning at run time
            if isinstance(callback, PhaseObserver):
                callback.on_phase(phase, num_done, num_total)

    def _on_tqdm(self, bar: TQDMProgressBar, text: str) -> None:
        if self._trainer.training:
            bar.train_progress_bar.set_postfix_str(text)
        elif self._trainer.testing:
            bar.test_progress_bar.set_postfix_str(text)
        elif self._trainer.predicting:
            bar.predict_progress_bar.set_postfix_str(text)
        else:
            bar.val_progress_bar.set_postfix_str(text)

    def _on_rich(self, bar: RichProgressBar, text: str) -> None:
        if self._trainer.training:
            task, title = bar.train_progress_bar_id, f"Epoch {self._trainer.current_epoch}"
        elif self._trainer.testing:
            task, title = bar.test_progress_bar_id, bar.test_description
        elif self._trainer.predicting:
            task, title = bar.predict_progress_bar_id, bar.predict_description
        elif self._trainer.sanity_checking:
            task, title = bar.val_sanity_progress_bar_id, bar.sanity_check_description
        else:
            task, title = bar.val_progress_bar_id, bar.validation_description
        if task is not None and bar.progress is not None:
            bar.progress.update(task, description=f"{title} {text}".strip(), refresh=True)
