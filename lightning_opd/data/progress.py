"""Progress inside a rollout batch: the bar says what is going on while no batch ends."""

from __future__ import annotations

import time

import lightning as L
from lightning.pytorch.callbacks import RichProgressBar, TQDMProgressBar

SECONDS_BETWEEN_UPDATES = 0.2


class RolloutProgress:
    """Puts `rollout done/total` into Lightning's own progress bar, whichever it is."""

    def __init__(self, trainer: L.Trainer) -> None:
        """Bind to the trainer whose bar to move."""
        self._trainer = trainer
        self._last = 0.0

    def show(self, stage: str, num_done: int, num_total: int) -> None:
        """Show how far a stage is, a few times a second; finished stages clear the text."""
        now = time.monotonic()
        if num_done < num_total and now - self._last < SECONDS_BETWEEN_UPDATES:
            return
        self._last = now
        text = f"{stage} {num_done}/{num_total}" if num_done < num_total else ""
        bar = self._trainer.progress_bar_callback
        if isinstance(bar, TQDMProgressBar) and bar.is_enabled:
            self._on_tqdm(bar, text)
        elif isinstance(bar, RichProgressBar) and bar.is_enabled and bar.progress is not None:
            self._on_rich(bar, text)

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
