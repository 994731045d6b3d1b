"""What the command line shows by itself: the progress bar and the summaries instead of Lightning's, and no tips."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from lightning.pytorch.callbacks import Callback, ProgressBar
from typing_extensions import override

from lightning_opd.callbacks.progress_bar import RolloutProgressBar
from lightning_opd.callbacks.run_summary import RunSummary

if TYPE_CHECKING:
    from collections.abc import Mapping

UNWANTED = ("💡 Tip:", "GPU available: ", "TPU available: ", "HPU available: ", "`Trainer.fit` stopped: `max_")
"""How lines of Lightning begin that are advertisements, or that the summaries say better; warnings are none of them."""


class _Unwanted(logging.Filter):
    @override
    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno > logging.INFO or not record.getMessage().startswith(UNWANTED)


_FILTER = _Unwanted()


def with_console(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return trainer settings in which the package's own bar and summaries take the places that are still free.

    Lightning's tips and lines about absent devices are dropped from its log from now on.

    Args:
        settings: The trainer's, built from the configuration.
    """
    for name in ("lightning", "lightning.pytorch", "lightning.fabric"):
        for handler in logging.getLogger(name).handlers:
            handler.addFilter(_FILTER)  # a second time it does nothing
    given = settings.get("callbacks") or []
    callbacks: list[Callback] = list(given) if isinstance(given, list) else [given]
    if settings.get("enable_progress_bar") is not False and not any(isinstance(c, ProgressBar) for c in callbacks):
        callbacks.append(RolloutProgressBar())
    if not any(isinstance(callback, RunSummary) for callback in callbacks):
        callbacks.append(RunSummary())
    own_summary = settings.get("enable_model_summary")
    return {**settings, "callbacks": callbacks, "enable_model_summary": bool(own_summary)}
