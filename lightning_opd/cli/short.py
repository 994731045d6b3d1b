"""Builds a short command's options from the signature and docstring of its function, and runs it."""

from __future__ import annotations

import importlib
import inspect
import json
import typing
from argparse import SUPPRESS
from typing import TYPE_CHECKING, get_type_hints

import docstring_parser

from lightning_opd.errors import ConfigError
from lightning_opd.options.messages import BriefParser, explained
from lightning_opd.options.sources import ConfigSources

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


def short_parser(command: str, function: Callable[..., None]) -> BriefParser:
    """Return a parser for a command's function, whose docstring becomes the help.

    A positional-only parameter is given as plain words; the others are options, less the underscore of `from_`.
    """
    docstring = docstring_parser.parse(function.__doc__ or "")
    about = {param.arg_name: param.description for param in docstring.params}
    description = "\n\n".join(filter(None, (docstring.short_description, docstring.long_description)))
    parser = BriefParser(prog=f"python -m lightning_opd {command}", description=description, allow_abbrev=False)
    if "config" not in inspect.signature(function).parameters:
        parser.add_argument("--config", action="config", help="YAML file with any of the options below.")
    hints = get_type_hints(function)
    for name, parameter in inspect.signature(function).parameters.items():
        help_text, hint = about.get(name) or "", hints[name]
        if parameter.kind is inspect.Parameter.POSITIONAL_ONLY:
            many = typing.get_origin(hint) is list
            parser.add_argument(name.upper(), nargs="*" if many else "?", type=str if many else hint, help=help_text)
            parser.add_argument(f"--{name}", type=hint | None, help=SUPPRESS)  # the same key in a YAML file
            continue
        needed = parameter.default is inspect.Parameter.empty
        default = None if needed else parameter.default
        parser.add_argument(f"--{name.rstrip('_')}", type=hint, required=needed, default=default, help=help_text)
    return parser


def gathered(words: Sequence[str], lists: set[str]) -> list[str]:
    """Return the words with those after an option that takes a list as one JSON list.

    Example:
        >>> gathered(["--models", "a", "b", "--output", "c"], {"--models"})
        ['--models', '["a", "b"]', '--output', 'c']
    """
    result: list[str] = []
    for word in words:
        last = result[-2] if len(result) > 1 else ""
        if result and result[-1] in lists and not word.startswith(("-", "[")):
            result.append(json.dumps([word], ensure_ascii=False))
        elif last in lists and result[-1].startswith("[") and not word.startswith("-"):
            result[-1] = json.dumps([*json.loads(result[-1]), word], ensure_ascii=False)
        else:
            result.append(word)
    return result


def run_short_command(name: str, words: Sequence[str]) -> None:
    """Parse a short command's words and call its function, which has the name of the command and of its module."""
    function = getattr(importlib.import_module(f"lightning_opd.cli.{name}"), name)
    parameters = inspect.signature(function).parameters
    hints = get_type_hints(function)
    words = gathered(words, {f"--{name}" for name in parameters if typing.get_origin(hints[name]) is list})
    sources = ConfigSources(words, ()) if "config" in parameters else ConfigSources.read(words)
    with explained(sources):
        values = short_parser(name, function).parse_args(sources.inlined()).as_dict()
    positional, options = [], {}
    for parameter in parameters.values():
        if parameter.kind is inspect.Parameter.POSITIONAL_ONLY:
            value = values[parameter.name.upper()] or values[parameter.name]
            if not value:
                usage = f"python -m lightning_opd {name} {parameter.name.upper()} [--key value ...]"
                msg = f"`{name}` expects `{parameter.name}` after the command: `{usage}`."
                raise ConfigError(msg)
            positional.append(value)
        else:
            options[parameter.name] = values[parameter.name.rstrip("_")]
    function(*positional, **options)
