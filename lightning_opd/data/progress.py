"""Progress inside a window: the bar says what is going on while no batch ends."""

from __future__ import annotations

import lightning as L  # Lightning's own convention
from lightning.pytorch.callbacks import RichProgressBar, TQDMProgressBar


def show_progress(trainer: L.Trainer, stage: str, num_done: int, num_total: int) -> None:
    """Put `stage done/total` into Lightning's own progress bar, whichever it is."""
    bar = trainer.progress_bar_callback
    text = f"{stage} {num_done}/{num_total}" if num_done < num_total else ""
    if isinstance(bar, TQDMProgressBar):
        inner = bar.train_progress_bar if trainer.training else bar.val_progress_bar
        inner.set_postfix_str(text)
    elif isinstance(bar, RichProgressBar) and bar.progress is not None:
        bar_id = bar.train_progress_bar_id if trainer.training else bar.val_progress_bar_id
        if bar_id is not None:
            epoch = f"Epoch {trainer.current_epoch}" if trainer.training else "Validation"
            bar.progress.update(bar_id, description=f"{epoch} {text}".strip())
            bar.refresh()
