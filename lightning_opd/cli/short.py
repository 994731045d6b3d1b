"""Builds a short verb's command line from the signature and docstring of its function."""

from __future__ import annotations

import importlib
import inspect
import typing
from argparse import SUPPRESS
from typing import TYPE_CHECKING, NoReturn, get_type_hints

import docstring_parser
from jsonargparse import ArgumentParser
from typing_extensions import override

from lightning_opd.cli.errors import UsageError, find_settings_error, message_of
from lightning_opd.cli.messages import Written, explain

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


_OWN_OPTIONS = ("--help", "--print_config", "--print_shtab")


class ShortParser(ArgumentParser):
    """A parser whose errors are one or two lines."""

    written: Written | None = None
    """What the user wrote about classes; None for a verb's own options."""

    @override
    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if not self.exit_on_error:  # a parser inside the parser, whose caller may have an alternative
            super().error(message, ex)
        raise UsageError(explain(message, self.written or Written(keys=self._options()))) from ex

    def _options(self) -> list[str]:
        options = [key for action in self._actions if action.help != SUPPRESS for key in action.option_strings]
        return [key for key in options if key.startswith("--") and not key.endswith("+") and key not in _OWN_OPTIONS]


def short_parser(verb: str, function: Callable[..., None]) -> ArgumentParser:
    """Return a parser for a verb's function.

    A first parameter without default, or one that is a list of strings, is given as plain words; the others
    are options. A trailing underscore of a parameter (`from_`) is a Python keyword escaped.

    Args:
        verb: Name of the verb.
        function: Its parameters become the options, its docstring the help.
    """
    docstring = docstring_parser.parse(function.__doc__ or "")
    about = {param.arg_name: param.description for param in docstring.params}
    description = "\n\n".join(filter(None, (docstring.short_description, docstring.long_description)))
    parser = ShortParser(prog=f"python -m lightning_opd {verb}", description=description, allow_abbrev=False)
    if "config" not in inspect.signature(function).parameters:
        parser.add_argument("--config", action="config", help="YAML file with any of the options below.")
    hints = get_type_hints(function)
    for name, parameter in inspect.signature(function).parameters.items():
        help_text, hint = about.get(name) or "", hints[name]
        if parameter.kind is inspect.Parameter.POSITIONAL_ONLY:
            many = typing.get_origin(hint) is list
            parser.add_argument(name.upper(), nargs="*" if many else "?", type=str if many else hint, help=help_text)
            parser.add_argument(f"--{name}", type=hint | None, help=SUPPRESS)  # the same key in a YAML file
        elif parameter.default is inspect.Parameter.empty:
            parser.add_argument(f"--{name.rstrip('_')}", type=hint, required=True, help=help_text)
        else:
            parser.add_argument(f"--{name.rstrip('_')}", type=hint, default=parameter.default, help=help_text)
    return parser


def run_short_verb(name: str, home: str, words: Sequence[str]) -> None:
    """Parse a short verb's command line and call its function.

    Args:
        name: The verb, also the name of its function.
        home: Module of that function.
        words: Command line after the verb.
    """
    function = getattr(importlib.import_module(home), name)
    parser = short_parser(name, function)
    values = parser.parse_args(list(words)).as_dict()
    positional, options = [], {}
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind is inspect.Parameter.POSITIONAL_ONLY:
            value = values[parameter.name.upper()] or values[parameter.name]
            if not value:
                usage = f"python -m lightning_opd {name} {parameter.name.upper()} [--key value ...]"
                msg = f"`{name}` expects `{parameter.name}` after the verb: `{usage}`."
                raise UsageError(msg)
            positional.append(value)
        else:
            options[parameter.name] = values[parameter.name.rstrip("_")]
    try:
        function(*positional, **options)
    except Exception as error:
        settings_error = find_settings_error(error)
        if settings_error is None:
            raise
        raise UsageError(message_of(settings_error)) from error
