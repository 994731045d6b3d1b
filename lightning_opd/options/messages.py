"""Words a parser's complaint in a few lines: the key, where it stands, the innermost cause, a likely correction."""

from __future__ import annotations

import contextlib
import re
from typing import TYPE_CHECKING, NoReturn

from jsonargparse import ArgumentParser, Namespace
from jsonargparse._typehints import ActionTypeHint
from typing_extensions import override

from lightning_opd.errors import ConfigError, class_path_problem, did_you_mean, own_subclasses

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from lightning_opd.options.sources import ConfigSources

_MAX_LENGTH = 400
_MAX_KNOWN = 12
_MARK = "\x1f"
_KINDS = {
    "int": "an integer",
    "float": "a number",
    "str": "a text",
    "bool": "true or false",
    "list": "a list",
    "Mapping": "a mapping",
    "dot import path string": "a mapping or a class's name",
}
"""Types as a parser calls them, in the user's words."""
_STRUCTURE = re.compile(
    r".*:$|Does not validate|Subtypes|Given value|Expected a (path but|<class 'None)|a (dict|class) "
)


class ParserError(Exception):
    """A parser's complaint; `explain` words it for the user."""


class RefusedError(BaseException):
    """Carries a `ConfigError` of a class that is being built past parsers that would try an alternative."""


class BriefParser(ArgumentParser):
    """A parser whose innermost complaint says which key is wrong and which ones there are."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        """Build classes so that their own refusals reach the user."""
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]  # Lightning's parser passes its own
        self.add_instantiator(_build, object, subclasses=True)

    @override
    def parse_args(  # type: ignore[override]  # the parser's own signature, not argparse's
        self,
        args: Sequence[str] | None = None,
        namespace: Namespace | None = None,
        env: bool | None = None,
        defaults: bool = True,
        **kwargs: object,
    ) -> Namespace:
        if args is not None and not self.exit_on_error:  # a key inside a class: a parsed null comes back as a word
            args = [f"{word.removesuffix('None')}null" if word.endswith("=None") else word for word in args]
        return super().parse_args(args, namespace, env, defaults, **kwargs)

    @override
    def validate(
        self,
        namespace: Namespace,
        skip_unset: bool = True,
        skip_required: bool = False,
        branch: str | None = None,
        **kwargs: object,
    ) -> None:
        super().validate(namespace, skip_unset, skip_required, branch, **kwargs)
        for action in self._actions:
            if isinstance(action, ActionTypeHint) and action.default is not None:
                value = namespace.get(action.dest, action.default)
                if value is None:  # the parser takes it for a setting that is left out
                    self._check_value_key(action, value, action.dest, namespace)

    @override
    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if "\n" not in message and _MARK not in message:  # about a key of this parser, not of one inside it
            message = _marked(message, getattr(ex, "subcommand_parser", self))
        if not self.exit_on_error:  # a parser inside a parser, whose caller may have an alternative
            super().error(message, ex)
        raise ParserError(message) from ex


def _marked(message: str, parser: ArgumentParser) -> str:
    """Return the complaint of a parser as key and text between marks; unchanged where it is about no key of it."""
    if required := re.search(r"required: ([\w.-]+)", message):
        return _MARK.join(("", re.sub(r"^(fit|validate|test|predict)\.", "", required[1]), "", message))
    if unknown := re.search(r"unrecognized arguments: (?!--)(.*)", message, re.DOTALL):
        got = f"expected options such as `--key value`, got `{_shorten(unknown[1])}`."
        return _MARK.join(("", "", got, message))
    if option := re.search(r"argument (?:-\w/)?(--[\w.-]+): expected one argument", message):
        return _MARK.join(("", "", f"`{option[1]}` expects a value after it.", message))
    if key := re.search(r"Key must be a string, got: (.*)\.$", message):
        return _MARK.join(("", "", f"a config file has the key `{key[1]}`, which is no word.", message))
    words = re.findall(r"'([\w.+-]+)'|--([\w.+-]+)", message.partition("Subcommand '")[2].partition("'")[2] or message)
    parts = ".".join(option or quoted for quoted, option in words).removesuffix("+").split(".")
    defaults = parser.get_defaults(skip_validation=True)
    keys = [key.split(".") for key in defaults.keys()]  # noqa: SIM118  # no mapping: it cannot be iterated
    for depth, part in enumerate(parts):
        known = sorted({key[depth] for key in keys if len(key) > depth and key[:depth] == parts[:depth]} - {"config"})
        if known and part not in known:
            shown = [*known[:_MAX_KNOWN], *(["..."] if len(known) > _MAX_KNOWN else [])]
            cure = did_you_mean(part, known) or f" Known: {', '.join(shown)}."
            return _MARK.join(("", ".".join(parts[: depth + 1]), f"is not a known key.{cure}", message))
    return message


@contextlib.contextmanager
def explained(sources: ConfigSources) -> Iterator[None]:
    """Turn a parser's complaint about what the user wrote into a `ConfigError`."""
    try:
        yield
    except ParserError as complaint:
        raise ConfigError(explain(complaint, sources)) from complaint
    except RefusedError as refused:
        raise refused.args[0] from None


def _build(kind: Callable[..., object], *args: object, **kwargs: object) -> object:
    try:
        return kind(*args, **kwargs)
    except ConfigError as error:
        raise RefusedError(error) from error


def build_from_config(base: type, key: str, spec: object, sources: ConfigSources, default: str | None = None) -> object:
    """Build the instance of `base` that a setting describes: a class path, or a mapping with `init_args`."""
    parser = BriefParser(prog="python -m lightning_opd")
    parser.add_subclass_arguments(base, key, required=True)
    if default is not None:
        parser.set_defaults({key: {"class_path": default}})
    with explained(sources):
        return parser.instantiate(parser.parse_object({key: spec}))[key]


def explain(complaint: ParserError, sources: ConfigSources) -> str:
    """Return what the user should read: key, place in `sources`, innermost cause, likely correction."""
    message = str(complaint)
    if _MARK in message:
        before, tail, text, *_ = message.split(_MARK)
        path = (*_keys_around(before.split("\n")), *tail.split("."))
        found = next(((p, place) for p, _, place in sources.mentions() if _is_part(path, p)), None)
        if not tail:
            return text
        if not text:
            key = ".".join(path)
            nulls = [f" (null {place})" for p, value, place in sources.mentions() if p == path and value is None]
            return f"`{key}` must be given{''.join(nulls[:1])}, as `--{key} ...` or in a --config file."
        name = ".".join(found[0]) if found else f"--{tail}"
        return f"`{name}` {found[1] if found else 'on the command line'} {text}"
    lines = message.split("\n")
    causes = [(_indent(line), index) for index, line in enumerate(lines) if not _STRUCTURE.match(line.strip(" -"))]
    deepest, last = max(causes, default=(0, 0))
    path = _keys_around(lines[: last + 1])
    reasons = list(dict.fromkeys(lines[index].strip(" -") for indent, index in causes if indent == deepest))
    text = _expectation(reasons) or "; ".join(reasons)
    under = [mention for mention in sources.mentions() if mention[0][: len(path)] == path]
    named = [mention for mention in under if _is_class_path(mention[1]) and str(mention[1]) in message]
    guilty = [mention for mention in named if class_path_problem(str(mention[1]))]
    guilty += [mention for mention in named if str(mention[1]) in text]
    guilty += [mention for mention in under if mention[0] == path]
    guilty += [mention for mention in sources.mentions() if path and _is_part(path, mention[0])]
    keys, value, place = guilty[0] if guilty else (path, None, "")
    why = class_path_problem(str(value)) if _is_class_path(value) else ""
    got = "" if why or value is None or str(value) in text else f" (got `{_shorten(str(value))}`)"
    base = re.search(r"subclass of (\w+)$", text)
    examples = f". For example {', '.join(own_subclasses(base[1])[:3])}." if base else ""
    return (f"`{'.'.join(keys)}` {place}{got}: " if keys else "") + (why or _shorten(text) + examples)


def _expectation(reasons: Sequence[str]) -> str:
    """Return what a parser expected and got, in one phrase; nothing where it says something else."""
    pattern = (
        r"Expected an? (?:<class '(?:\w+\.)*(\w+)'>|typing\.Literal\[(.*)\]|(.+?)(?:: .*)?)(?:\. Got value: (.*))?"
    )
    found = [match for match in (re.fullmatch(pattern, reason) for reason in reasons) if match]
    kinds = [match[2].replace(", ", " or ") if match[2] else _KINDS.get(match[1] or match[3], "") for match in found]
    if not kinds or len(kinds) < len(reasons) or "" in kinds:
        return ""
    given = next((match[4] for match in found if match[4] is not None), None)
    if given is not None and given.lstrip("+-.").lower() in {"nan", "inf"}:
        kinds = [kind.replace("a number", "a finite number") for kind in kinds]
    return f"expected {' or '.join(dict.fromkeys(kinds))}" + (f", got `{_shorten(given)}`." if given else ".")


def _keys_around(lines: Sequence[str]) -> tuple[str, ...]:
    """Return the keys that lead to the last line: those named by lines of less and less indentation above it."""
    keys: tuple[str, ...] = ()
    indent = _indent(lines[-1])
    for line in reversed(lines):
        if (named := re.search(r'Parser key "([^"]+)"', line)) and (_indent(line) < indent or line == lines[-1]):
            keys = (*named[1].split("."), *keys)
        indent = min(indent, _indent(line)) if line.strip() else indent
    return tuple(key for key in keys if key not in {"init_args", "config"})


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip(" -"))


def _is_part(path: Sequence[str], mention: Sequence[str]) -> bool:
    """Return whether a path is a mention's, apart from names of a mapping's entries or indices of a list inside it."""
    rest = iter(mention)
    return bool(mention) and path[-1] == mention[-1] and all(key in rest for key in path)


def _is_class_path(value: object) -> bool:
    return isinstance(value, str) and re.fullmatch(r"([A-Za-z_]\w*\.)+\w+|[A-Z]\w*", value) is not None


def _shorten(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _MAX_LENGTH else f"{text[:_MAX_LENGTH]} ..."
