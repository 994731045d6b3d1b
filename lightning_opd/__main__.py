"""`python -m lightning_opd COMMAND`, and the console script: what is said of Ctrl-C, also in the first second."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType

INTERRUPTED = "stopped by Ctrl-C.\n"
STATUS = 128 + signal.SIGINT


def main() -> int:
    """Run the command line of this process; return its status."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # a shell lets jobs in the background ignore it
        signal.signal(signal.SIGINT, interrupt)
    try:
        from lightning_opd.cli.main import main as run

        return run()
    except KeyboardInterrupt:
        if os.environ.get("LIGHTNING_OPD_TRACEBACK", "0") not in {"", "0"}:
            raise
        _say()
        return STATUS


def interrupt(number: int, frame: FrameType | None) -> None:
    """End at once inside an import, else raise KeyboardInterrupt.

    Many libraries import in a `try`, take the interrupt for a package that is missing, and go on or fail later.
    """
    at = frame
    while at is not None:
        if at.f_code.co_filename == "<frozen importlib._bootstrap>":
            _say()
            os._exit(STATUS)
        at = at.f_back
    signal.default_int_handler(number, frame)


def _say() -> None:
    if os.environ.get("LOCAL_RANK", "0") == "0":  # not every rank for itself
        sys.stderr.write(INTERRUPTED)
        sys.stderr.flush()


if __name__ == "__main__":
    raise SystemExit(main())
