"""Words the parser's complaints in one or two lines: the key, what was expected, what it got, the cure."""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lightning_opd.cli.classes import expected_classes, find_class, known_keys, neighbours, public_path, subclasses
from lightning_opd.cli.errors import did_you_mean
from lightning_opd.cli.sources import KeyPath, Source, Tree, readable, walk

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_MAX_LENGTH = 400
_MAX_KNOWN = 12
_NESTED = re.compile(r"Problem with given class_path '[^']+':\n(?P<indent> *)(?:Parser key|the following arg)")
_NO_KEY = re.compile(
    r"(?:unrecognized arguments: --|Option '|(?:Group '(?P<group>[^']+)' )?does not accept option ')(?P<key>[\w.+-]+)"
)
_NO_CLASS = re.compile(r"Problem with given class_path '(?P<value>[^']+)':\s*(?P<why>[^\n]*)")
_NO_DOT = re.compile(r"Expected a dot import path string: (?P<value>\S+)")
_WRONG_CLASS = re.compile(r"Import path (?:(?P<value>\S+) )?does not correspond to a subclass of (?P<base>\w+)")
_KEY = re.compile(r'Parser key "(?P<key>[^"]+)"')
_VALUE = re.compile(r"Expected an? (?P<kind>.+?)\. Got value: (?P<value>.*)")
_UNION = re.compile(r"Subtypes: \[(?P<kinds>.*)\](?:.|\n)*Given value: (?P<value>.*)")
_REQUIRED = re.compile(r'(?:arguments? (?:are|is) required: |Key ")(?P<key>[\w., -]+?)(?:" is required|\n|$)')


@dataclass(frozen=True)
class Written:
    """Everything the user wrote, for finding the place that a complaint is about.

    Args:
        sources: Config files and options, in order.
        keys: Options of a parser without config classes.
    """

    sources: Sequence[Source] = ()
    keys: Sequence[str] = ()
    tree: Tree = field(init=False)

    def __post_init__(self) -> None:
        """Merge the sources."""
        merged: Tree = {}
        for source in self.sources:
            _merge(merged, source.tree)
        object.__setattr__(self, "tree", merged)

    def find(self, fits: Callable[[KeyPath, object], bool]) -> tuple[KeyPath, str] | None:
        """Return the last key path that fits, and the name of its source."""
        for source in reversed(self.sources):
            for path, value in reversed(list(walk(source.tree))):
                if fits(path, value):
                    return path, source.name
        return None


def explain(message: str, written: Written) -> str:
    """Return the complaint as the user should read it.

    Args:
        message: Text of the parser's error.
        written: What it was about.
    """
    message = _innermost(message)
    for pattern, word in (
        (_NO_KEY, _unknown_key),
        (_NO_CLASS, _unknown_class),
        (_WRONG_CLASS, _wrong_class),
        (_NO_DOT, _unknown_class),
        (_REQUIRED, _missing),
        (_UNION, _wrong_value),
        (_VALUE, _wrong_value),
    ):
        match = pattern.search(message)
        if match:
            return word(match, message, written)
    short = " ".join(message.split())
    return short if len(short) <= _MAX_LENGTH else f"{short[:_MAX_LENGTH]} ..."


def _innermost(message: str) -> str:
    """Return the complaint about the deepest class, with the keys that lead to it in front."""
    keys: list[str] = []
    while nested := _NESTED.search(message):
        outer = _KEY.search(message)
        keys += [outer["key"]] if outer and outer.start() < nested.start() else []
        indent = nested["indent"]
        lines = message[nested.start("indent") :].split("\n")
        inside = itertools.takewhile(lambda line: not line or line.startswith(indent), lines)  # noqa: B023  # used at once
        block = [line.removeprefix(indent) for line in inside]
        message = "\n".join(block)
    if not keys:
        return message
    inner = _KEY.search(message)
    path = ".".join([*keys, *([inner["key"]] if inner else [])])
    return f'Parser key "{path}":\n{message[inner.end() + 1 :] if inner else message}'


def _unknown_key(match: re.Match[str], message: str, written: Written) -> str:
    del message
    tail = match["key"].removesuffix("+")
    if match.groupdict().get("group"):
        tail = f"{match['group']}.{tail}"
    place = written.find(lambda path, _: _ends_with(path, tail) and not _is_known(path, tail, written))
    if place is None:
        option = f"--{tail}"
        return f"`{option}` is not an option.{_known(option, written.keys)}"
    path, source = _cut(place[0], tail, written), place[1]
    known = known_keys(written.tree, path[:-1])
    return f"`{readable(path)}` {source} is not a known key.{_known(path[-1], known)}"


def _unknown_class(match: re.Match[str], message: str, written: Written) -> str:
    value = match["value"].rstrip(":'\"")
    path, source = _place_of_value(value, message, written)
    if "." not in value:
        bases = expected_classes(written.tree, path)
        names = sorted({sub.__name__ for base in bases for sub in subclasses(base)})
        cure = f"{did_you_mean(value, names)} Give its import path, such as my_package.{value}."
        return f"`{readable(path)}` {source}: there is no class `{value}`.{cure}"
    module, names = neighbours(value)
    if not module:
        problem = f"module `{value.split('.')[0]}` of `{value}` cannot be imported"
        return f"`{readable(path)}` {source}: {problem}; install it or add its folder to PYTHONPATH."
    missing = value.removeprefix(f"{module}.").split(".")[0]
    if missing in names:
        why = match.groupdict().get("why") or "not a class"
        return f"`{readable(path)}` {source}: `{value}` cannot be imported: {why}"
    return f"`{readable(path)}` {source}: `{module}` has no `{missing}`.{did_you_mean(missing, names)}"


def _wrong_class(match: re.Match[str], message: str, written: Written) -> str:
    given = re.search(r"Given value: (?P<value>\S+)", message)
    value = match["value"] or (given["value"] if given else "another class")
    path, source = _place_of_value(value, message, written)
    base = next((kind for kind in expected_classes(written.tree, path) if kind.__name__ == match["base"]), None)
    examples = sorted((public_path(sub) for sub in (subclasses(base) if base else [])), key=_is_foreign)[:3]
    cure = f" For example {', '.join(examples)}." if examples else ""
    kind = find_class(value)
    parents = f", a `{kind.__mro__[1].__name__}`" if kind and kind.__mro__[1] is not object else ""
    return f"`{readable(path)}` {source}: expected a subclass of `{match['base']}`, got `{value}`{parents}.{cure}"


def _is_foreign(class_path: str) -> bool:
    return not class_path.startswith("lightning_opd.")


def _missing(match: re.Match[str], message: str, written: Written) -> str:
    del written
    outer = _KEY.search(message)
    prefix = f"{outer['key']}." if outer and outer.start() < match.start() else ""
    keys = [prefix + readable(tuple(key.strip().split("."))) for key in match["key"].split(",")]
    return f"{', '.join(f'`{key}`' for key in keys)} must be given, as `--{keys[0]} ...` or in a --config file."


def _wrong_value(match: re.Match[str], message: str, written: Written) -> str:
    key = _KEY.search(message)
    tail = key["key"] if key else ""
    place = written.find(lambda path, _: bool(tail) and _ends_with(path, tail))
    name, source = (readable(place[0]), f" {place[1]}") if place else (tail, "")
    kinds = match.groupdict().get("kinds") or match["kind"]
    expected = " or ".join(dict.fromkeys(_kind_name(kind) for kind in re.split(r", (?![^\[]*\])", kinds)))
    value = match["value"].strip()
    shown = value if len(value) <= _MAX_LENGTH // 2 else f"{value[: _MAX_LENGTH // 2]} ..."
    return f"`{name}`{source}: expected {expected}, got `{shown}`."


def _kind_name(kind: str) -> str:
    kind = kind.removeprefix("<class '").removesuffix("'>").removeprefix("typing.")
    return {"NoneType": "null"}.get(kind, re.sub(r"\b(?:\w+\.)+(?=\w)", "", kind))


def _place_of_value(value: str, message: str, written: Written) -> tuple[KeyPath, str]:
    place = written.find(lambda _, other: other == value)
    if place is not None:
        path, source = place
        return (path[:-1] if path[-1] == "class_path" else path), source
    key = _KEY.search(message)
    return (key["key"] if key else "",), "in the configuration"


def _ends_with(path: KeyPath, tail: str) -> bool:
    flat = f".{readable(path)}"
    return flat.removesuffix("+").endswith(f".{readable(tuple(tail.split('.')))}")


def _is_known(path: KeyPath, tail: str, written: Written) -> bool:
    cut = _cut(path, tail, written)
    return cut[-1].removesuffix("+") in known_keys(written.tree, cut[:-1])


def _cut(path: KeyPath, tail: str, written: Written) -> KeyPath:
    """Return the path up to the first key of `tail` that nothing accepts."""
    flat = tuple(key for key in path if key != "init_args")
    first = len(flat) - len(tail.split("."))
    for end in range(max(first, 0) + 1, len(flat)):
        known = known_keys(written.tree, flat[: end - 1])
        if known and flat[end - 1] not in known:
            return flat[:end]
    return flat


def _known(word: str, known: Sequence[str]) -> str:
    shown = [*known[:_MAX_KNOWN], *(["..."] if len(known) > _MAX_KNOWN else [])]
    return did_you_mean(word, known) or (f" Known: {', '.join(shown)}." if known else "")


def _merge(target: Tree, source: Tree) -> None:
    """Merge as the parser does, with the values of `init_args` lifted to their class."""
    for key, value in source.items():
        old = target.get(key)
        if isinstance(value, dict) and all(isinstance(name, str) for name in value):
            inner: Tree = old if isinstance(old, dict) else {"class_path": old} if isinstance(old, str) else {}
            target[key] = inner
            _merge(inner, {**{k: v for k, v in value.items() if k != "init_args"}, **_init_args(value)})
        else:
            target[key] = value


def _init_args(value: Tree) -> Tree:
    inner = value.get("init_args")
    return dict(inner) if isinstance(inner, dict) else {}
