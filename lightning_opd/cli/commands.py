"""Runs a command by its name in this process, and says which there are."""

from __future__ import annotations

import contextlib
import importlib
import sys
from typing import TYPE_CHECKING

from lightning_opd.errors import ConfigError, did_you_mean
from lightning_opd.options.table import SHORT_COMMANDS, TRAINER_COMMANDS, command_names

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


def overview() -> str:
    """Return the text of the top-level help."""
    lines = {**TRAINER_COMMANDS, **SHORT_COMMANDS}
    commands = "\n".join(f"  {name:<10} {line}" for name, line in lines.items())
    return (
        "usage: python -m lightning_opd COMMAND [--config FILE ...] [--key value ...]\n\n"
        "On-policy distillation: a student generates, a teacher scores every token, the student learns.\n\n"
        f"commands:\n{commands}\n\n"
        "options:\n  -h, --help  Show this text; after a command, that command's options.\n"
        "  --version   Show the version.\n"
        "  --print_shtab SHELL  Print a script for completion by the tab key, for bash, zsh or tcsh.\n"
    )


def run_command(argv: Sequence[str]) -> None:
    """Run one command with its words in this process; a `ConfigError` says what is wrong with them."""
    command, words = argv[0], list(argv[1:])
    if any(word.partition("=")[0] == "--print_shtab" for word in argv):
        sys.stdout.write(importlib.import_module("lightning_opd.cli.completion").completion_script(argv))
        return
    if command in SHORT_COMMANDS:
        from lightning_opd.cli.short import run_short_command

        run_short_command(command, words)
    elif command in TRAINER_COMMANDS:
        # Imported by name: it costs seconds, and what it imports must not be loaded for the short commands.
        importlib.import_module("lightning_opd.cli.lightning").run_trainer_command(command, words)
    else:
        raise ConfigError(_unknown_command(argv))


@contextlib.contextmanager
def command_line(argv: Sequence[str]) -> Iterator[None]:
    """Make `sys.argv` read as if the process had been started for this command; launchers start its copies from it."""
    before = sys.argv
    sys.argv = [before[0], *argv]
    try:
        yield
    finally:
        sys.argv = before


def _unknown_command(argv: Sequence[str]) -> str:
    word = argv[0]
    if word.startswith("-"):
        command = next((other for other in argv if other in command_names()), "COMMAND")
        usage = f"`python -m lightning_opd {command} {word} ...`"
        return f"expected a command first, got `{word}`; options follow the command: {usage}."
    return f"`{word}` is not a command.{did_you_mean(word, command_names())} Commands: {', '.join(command_names())}."
