"""Help for people: the package's own options first, with the classes that fit each; Lightning's after them."""

from __future__ import annotations

import importlib
import inspect
import pydoc
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, get_args, get_origin

import docstring_parser
from jsonargparse import DefaultHelpFormatter
from typing_extensions import override

from lightning_opd.errors import ConfigError, class_path_problem, did_you_mean
from lightning_opd.options.table import TRAINER_COMMANDS

if TYPE_CHECKING:
    from argparse import Action

    from jsonargparse import ArgumentParser

_ROOTS = ("lightning_opd", "lightning", "torch")
"""Packages whose classes settings take; others that happen to be loaded are left out."""


class BriefHelp(DefaultHelpFormatter):
    """Names classes without their modules, says what fits instead of a type, and leaves out every `--KEY.help`."""

    @override
    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "\n\n".join(super(BriefHelp, self)._fill_text(part, width, indent) for part in text.split("\n\n"))

    @override
    def _format_action(self, action: Action) -> str:
        is_help = any(option.endswith(".help") for option in action.option_strings)
        is_file = action.metavar == "CONFIG" and "--config" not in action.option_strings
        return "" if is_help or is_file else super()._format_action(action)

    @override
    def _format_action_invocation(self, action: Action) -> str:
        return super()._format_action_invocation(action).partition(f", {''.join(action.option_strings[:1])}+")[0]

    @override
    def _get_help_string(self, action: Action) -> str:
        text, hint = action.help or "", getattr(action, "_typehint", None)
        names = [kind.__name__ for kind in fitting(hint)]
        if hint is None:
            return text[:1].upper() + text[1:]
        details = [f"classes: {', '.join(names)}" if names else "%(type)s"]
        details += ["required"] if action.required else ["default: %(default)s"]
        return f"{text} ({'; '.join(details)})"

    @override
    def _expand_help(self, action: Action) -> str:
        text = re.sub(r":\w+:`~?(?:\w+\.)*([^`]+)`", r"`\1`", super()._expand_help(action)).replace("``", "`")
        text = re.sub(r"\{'class_path': '(?:\w+\.)*(\w+)'(?:, 'init_args': \{([^{}]*)\})?\}", _call, text)
        text = re.sub(r"Union\[([^\[\]]+)\]", lambda found: found[1].replace(", ", " | "), text)
        return re.sub(r"Optional\[([^\[\]]+(?:\[[^\[\]]*\])?)\]", r"\1 | null", text)


def _call(found: re.Match[str]) -> str:
    """Return a default that is written as class path and arguments as one would write it in Python."""
    arguments = re.sub(r"'(\w+)': ", r"\1=", found[2] or "")
    return f"{found[1]}({arguments})" if arguments else found[1]


def fitting(hint: object) -> list[type]:
    """Return the loaded classes that a setting of this type takes, the package's own first.

    Args:
        hint: An annotation, such as `Mapping[str, str | Teacher]`.
    """
    bases = [kind for kind in _classes_in(hint) if type.__subclasses__(kind)]
    kinds = [kind for base in _classes_in(hint) for kind in _family(base) if kind not in bases]
    found = dict.fromkeys(kind for kind in kinds if _is_choice(kind))
    return sorted(found, key=lambda kind: not kind.__module__.startswith("lightning_opd"))


def _classes_in(hint: object) -> Iterator[type]:
    if isinstance(hint, type) and hint.__module__.partition(".")[0] in _ROOTS:
        yield hint
    parts = get_args(hint)
    for part in parts[-1:] if get_origin(hint) is Callable else parts:
        yield from _classes_in(part)


def _family(kind: type) -> Iterator[type]:
    yield kind
    children: list[type] = type.__subclasses__(kind)
    for child in children:
        yield from _family(child)


def _is_choice(kind: type) -> bool:
    """Return whether a class is made to be named in settings: a public one that its folder exports, if it does that."""
    folder, _, module = kind.__module__.rpartition(".")
    if folder.partition(".")[0] not in _ROOTS or "_" in {kind.__name__[0], module[:1]} or inspect.isabstract(kind):
        return False
    inside, own = vars(importlib.import_module(folder)), vars(sys.modules[kind.__module__])
    is_exported = kind.__name__ in inside or kind.__name__ in own.get("__all__", ()) or "__all__" not in inside
    return is_exported and not folder.endswith((".interfaces", ".cli"))


def wanted_help(words: Sequence[str]) -> list[str]:
    """Return the words that ask for help, `--help` or `--KEY.help` and the class after it; none where none do."""
    for index, word in enumerate(words):
        option, _, value = word.partition("=")
        if option in {"-h", "--help"}:
            return ["--help"]
        if option.startswith("--") and option.endswith(".help"):
            after = [other for other in words[index + 1 : index + 2] if not other.startswith("-")]
            return [option, *([value] if value else after)]
    return []


def help_text(parser: ArgumentParser, command: str, words: Sequence[str], classes: Mapping[str, type]) -> str:
    """Return the help that `wanted_help` words ask for.

    Args:
        parser: That of the command.
        command: `fit`, `validate`, `test` or `predict`.
        words: From `wanted_help`.
        classes: The default class of each key that the package fills, in the order in which to show them.

    Raises:
        ConfigError: Where no class fits the key, or not the one that is named.
    """
    if words[0] == "--help":
        return _all_options(parser, command, classes)
    key = words[0].removeprefix("--").removesuffix(".help").replace(".init_args", "")
    hints = list(_hints_at(parser, key))
    choices = {kind.__name__: kind for hint in hints for kind in fitting(hint)}
    if not choices:
        msg = f"`{words[0]}`: no class fits `{key}`. `{command} --help` lists the options and their classes."
        raise ConfigError(msg)
    usage = f"python -m lightning_opd {command}"
    if len(words) == 1:
        lines = [f"  {name:<26} {(inspect.getdoc(kind) or '').partition(chr(10))[0]}" for name, kind in choices.items()]
        example = f"Options of one: {usage} {words[0]} {next(iter(choices))}"
        return "\n".join([f"`{key}` takes one of:", *lines, "", example, ""])
    kind = choices.get(words[1]) or _imported(words[1], choices, key)
    is_mapping = any(get_origin(part) is Mapping for hint in hints for part in (hint, *get_args(hint)))
    key += ".NAME" if is_mapping else ""
    shown = _class_parser(parser, kind, key)
    shown.usage = f"{usage} --{key} {kind.__name__} [--{key}.OPTION VALUE ...]"
    about = docstring_parser.parse(inspect.getdoc(kind) or "")
    shown.description = "\n\n".join(filter(None, (about.short_description, about.long_description)))
    shown._action_groups[0].title = "options"
    return shown.format_help()


def _all_options(parser: ArgumentParser, command: str, classes: Mapping[str, type]) -> str:
    """Return the whole help of a command: general options, the classes' own, what those take, and Lightning's."""
    own = []
    for key, kind in classes.items():
        others = [other.__name__ for hint in _hints_at(parser, key) for other in fitting(hint) if other is not kind]
        first, *parts = _class_parser(parser, kind, key)._action_groups
        first.title = f"--{key} {kind.__name__}, or {', '.join(others)} (`--{key}.help CLASS` shows its options)"
        for part in parts:
            part.title = f"{part._group_actions[-1].dest.rpartition('.')[0]}: {part.title}"
        own += [first, *parts]
    inside = type(parser)().add_argument_group("options of these classes that take a class in turn")
    for (name, choices), takers in _inside(parser, list(classes.values())).items():
        inside.add_argument(name, help=f"{', '.join(choices)} (in {', '.join(takers)})")
    general = parser._action_groups[1]
    parser._option_string_actions["--config"].help = "YAML file, or its name in the package; the later one wins."
    general.add_argument(
        "--print_shtab", metavar="{bash,zsh,tcsh}", help="Print a script for completion by the tab key."
    )
    groups = {group: [action.dest for action in group._group_actions] for group in parser._action_groups[2:]}
    rest = [group for group, keys in groups.items() if not set(keys) & set(classes)]
    for group in rest:
        group.title = "Lightning's Trainer" if any("." in key for key in groups[group]) else "what to start from"
    rest.sort(key=lambda group: any(key.startswith("trainer.") for key in groups[group]))
    parser._action_groups = [general, *own, inside, *rest]
    parser.formatter_class = BriefHelp
    parser.usage = f"python -m lightning_opd {command} [--config FILE ...] [--KEY VALUE ...]"
    parser.description = TRAINER_COMMANDS[command]
    return parser.format_help()


def _inside(parser: ArgumentParser, kinds: Sequence[type]) -> dict[tuple[str, tuple[str, ...]], list[str]]:
    """Return option and fitting classes of the package → the classes that have the option, beyond those of `kinds`."""
    callbacks = [kind for hint in _hints_at(parser, "trainer.callbacks") for kind in _own(hint)]
    found: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    found["callbacks", tuple(kind.__name__ for kind in callbacks)] = ["trainer"]
    todo, seen = [*kinds, *callbacks], set[type]()
    for kind in todo:  # grows on the way
        actions = [] if kind in seen else _class_parser(parser, kind, None)._actions
        seen.add(kind)
        for action in [action for action in actions if not action.dest.endswith(".help")]:
            choices = _own(getattr(action, "_typehint", None))
            todo += choices
            if choices and kind not in kinds:
                found.setdefault((action.dest, tuple(other.__name__ for other in choices)), []).append(kind.__name__)
    return found


def _own(hint: object) -> list[type]:
    return [kind for kind in fitting(hint) if kind.__module__.startswith("lightning_opd.")]


def _hints_at(parser: ArgumentParser, key: str) -> Iterator[object]:
    """Yield the annotations of a setting in any class on its way; the names of a mapping's entries are skipped."""
    for action in parser._actions:
        hint = getattr(action, "_typehint", None)
        if action.dest == key and fitting(hint):
            yield hint
        elif key.startswith(f"{action.dest}.") and hint is not None:
            rest = key.removeprefix(f"{action.dest}.")
            for kind in fitting(hint):
                inner = _class_parser(parser, kind, None)
                yield from _hints_at(inner, rest)
                if "." in rest:
                    yield from _hints_at(inner, rest.partition(".")[2])


def _class_parser(parser: ArgumentParser, kind: type, key: str | None) -> ArgumentParser:
    """Return a parser of a class's arguments under a key, to be shown and not to parse with."""
    shown = type(parser)(formatter_class=BriefHelp)
    num_groups = len(shown._action_groups)
    shown.add_class_arguments(kind, key, fail_untyped=False)
    shown._action_groups = shown._action_groups[num_groups:]
    return shown


def _imported(path: str, choices: Mapping[str, type], key: str) -> type:
    """Return a class that is not among the known ones, by its import path."""
    if "." not in path:
        cure = did_you_mean(path, choices) or " Give an import path, such as `my_package.MyClass`."
        msg = f"`{path}` is no class for `{key}`.{cure} Known: {', '.join(choices)}."
        raise ConfigError(msg)
    if problem := class_path_problem(path):
        raise ConfigError(problem)
    kind = pydoc.locate(path)
    if not isinstance(kind, type):
        msg = f"`{path}` is no class."
        raise ConfigError(msg)
    return kind
