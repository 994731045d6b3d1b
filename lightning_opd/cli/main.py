"""Entry point of `python -m lightning_opd` and of the console script."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from lightning_opd import __version__
from lightning_opd.cli.commands import command_line, overview, run_command
from lightning_opd.cli.errors import USAGE_EXIT_CODE, StoppedRun, settings_message, wants_traceback
from lightning_opd.processes import end_with_launcher
from lightning_opd.tokenization.visible import visible

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line (by default that of the process); return 0, or 2 for wrong settings. A crash raises."""
    end_with_launcher()
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # Lightning's own use of old names
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in {"-h", "--help", "help"}:
        sys.stdout.write(overview())
        return 0 if words else USAGE_EXIT_CODE
    if words[0] == "--version":
        sys.stdout.write(f"lightning_opd {__version__}\n")
        return 0
    try:
        with command_line(words):
            run_command(words)
    except StoppedRun as stop:
        sys.stderr.write(f"{stop.go_on}\n")
        raise
    except Exception as error:
        message = settings_message(error)
        if message is None or wants_traceback():
            raise
        if os.environ.get("LOCAL_RANK", "0") == "0":
            sys.stderr.write(f"error: {visible(message)}\n")
        return USAGE_EXIT_CODE
    return 0
