"""Tells wrong settings from a crash."""

from __future__ import annotations

import linecache
import os

from lightning_opd.errors import ConfigError

FAILED_CHECK_EXIT_CODE = 1
USAGE_EXIT_CODE = 2
SIGNAL_EXIT_CODE = 128
"""Plus the number of the signal that ended a run."""
INTERRUPTED_EXIT_CODE = SIGNAL_EXIT_CODE + 2


class StoppedRun(SystemExit):
    """A signal stopped a run that can go on.

    Args:
        number: The signal.
        go_on: How the run goes on, in words for a user who started it alone.
    """

    def __init__(self, number: int, go_on: str) -> None:
        super().__init__(SIGNAL_EXIT_CODE + number)
        self.go_on = go_on


_BUILT_IN = (ValueError, ImportError, FileNotFoundError)
_REFUSING = ("lightning.pytorch.callbacks.", "lightning.pytorch.tuner.")
"""Parts of Lightning that refuse settings by errors of any class."""


def wants_traceback() -> bool:
    """Return whether LIGHTNING_OPD_TRACEBACK asks for the tracebacks of settings errors."""
    return os.environ.get("LIGHTNING_OPD_TRACEBACK", "0") not in {"", "0"}


def settings_message(error: BaseException) -> str | None:
    """Return the text for the user where an error or its cause is about the settings, or None where it is a crash."""
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, ConfigError) or _is_lightnings(link):
            return str(link)
        link = link.__cause__
    return None


def _is_lightnings(error: BaseException) -> bool:
    """Return whether Lightning itself refuses the settings: an error of its own, or a built-in one from its code."""
    if type(error).__name__ == "MisconfigurationException":
        return True
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    module = frame.tb_frame.f_globals.get("__name__", "") if frame is not None else ""
    if module.startswith(_REFUSING) and frame is not None:
        raised = linecache.getline(frame.tb_frame.f_code.co_filename, frame.tb_lineno)
        return raised.strip().startswith("raise ")  # said on purpose: a metric to monitor, a learning rate to find
    return isinstance(error, _BUILT_IN) and module.startswith("lightning.")
