"""`--print_shtab SHELL`: a script that completes commands, options and class names by the tab key."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
from functools import partial
from typing import TYPE_CHECKING

from lightning_opd.cli.short import short_parser
from lightning_opd.errors import ConfigError, MissingPackageError, did_you_mean
from lightning_opd.options.messages import BriefParser
from lightning_opd.options.table import SHORT_COMMANDS, TRAINER_COMMANDS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jsonargparse import ArgumentParser

_OPTION = "--print_shtab"
_SHELLS = ("bash", "zsh", "tcsh")


def completion_script(words: Sequence[str]) -> str:
    """Return the script for the shell that is named after `--print_shtab`; it serves the command `lightning-opd`.

    Raises:
        ConfigError: If there is no script for that shell.
        MissingPackageError: If the package shtab is not installed.
    """
    shell = " ".join(words).partition(_OPTION)[2].replace("=", " ").split()[:1]
    if not shell or shell[0] not in _SHELLS:
        got = f"`{shell[0]}`.{did_you_mean(shell[0], _SHELLS)}" if shell else "nothing."
        msg = f"`{_OPTION}` expects a shell ({', '.join(_SHELLS)}), got {got}"
        raise ConfigError(msg)
    if importlib.util.find_spec("shtab") is None:
        msg = f"`{_OPTION}` needs the package shtab, which is not installed: `pip install shtab`."
        raise MissingPackageError(msg)
    command_line = importlib.import_module("lightning_opd.cli.lightning").OPDCommandLine
    parsers: dict[str, ArgumentParser] = {}
    for name in TRAINER_COMMANDS:
        with contextlib.suppress(SystemExit):  # it ends where it would run the command
            command_line(name, [], partial(parsers.__setitem__, name))
    for name in SHORT_COMMANDS:
        parsers[name] = short_parser(name, getattr(importlib.import_module(f"lightning_opd.cli.{name}"), name))
    parser = BriefParser(prog="lightning-opd")
    subcommands = parser.add_subcommands()
    for name, own in parsers.items():
        subcommands.add_subcommand(name, own, help=(TRAINER_COMMANDS | SHORT_COMMANDS)[name])
    return parser.get_completion_script(f"shtab-{shell[0]}")
