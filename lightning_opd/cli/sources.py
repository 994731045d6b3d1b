"""What the user wrote, file by file and word by word, before any parser has an opinion on it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import yaml
from jsonargparse import get_loader

from lightning_opd.cli.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

Tree: TypeAlias = dict[str, object]
KeyPath: TypeAlias = tuple[str, ...]

_CONFIG_WORDS = ("--config", "-c")


@dataclass(frozen=True)
class Source:
    """One config file, or one option of the command line.

    Args:
        name: Where messages say it stands.
        tree: What it says.
        word: Index of its value among the command line's words; -1 where it is not a config file.
    """

    name: str
    tree: Tree
    word: int = -1


def read_sources(words: Sequence[str]) -> list[Source]:
    """Read the config files and options of a command line, in order.

    Args:
        words: The command line after the verb.

    Raises:
        UsageError: If a config file is missing, is not YAML, or is not a mapping.
    """
    sources: list[Source] = []
    index = 0
    while index < len(words):
        option, equals, value = words[index].partition("=")
        if not equals and index + 1 < len(words) and not words[index + 1].startswith("--"):
            index += 1
            value = words[index]
        if option in _CONFIG_WORDS and value:
            sources.append(_read_config(value, index))
        elif option.startswith("--"):
            sources.append(Source("on the command line", _nested(option.removeprefix("--").split("."), _scalar(value))))
        index += 1
    return sources


def walk(tree: object, path: KeyPath = ()) -> Iterator[tuple[KeyPath, object]]:
    """Yield every key path of a tree with its value, parents first; list items count as keys."""
    items: list[tuple[str, object]] = []
    if isinstance(tree, Mapping):
        items = [(str(key), value) for key, value in tree.items()]
    elif isinstance(tree, list):
        items = [(str(index), value) for index, value in enumerate(tree)]
    for key, value in items:
        yield (*path, key), value
        yield from walk(value, (*path, key))


def readable(path: KeyPath) -> str:
    """Return a key path as the command line spells it.

    Example:
        >>> readable(("model", "init_args", "student", "path"))
        'model.student.path'
    """
    return ".".join(key for key in path if key != "init_args")


def _read_config(value: str, word: int) -> Source:
    is_inline = value.lstrip().startswith("{")
    name = "an inline --config" if is_inline else f"`{value}`"
    if not is_inline and not Path(value).is_file():
        msg = f"config file `{value}` does not exist (looked in `{Path.cwd()}`)."
        raise UsageError(msg)
    try:
        tree = get_loader("yaml")(value if is_inline else Path(value).read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        msg = f"{name} is not valid YAML: {' '.join(str(error).split())}"
        raise UsageError(msg) from error
    if tree is None:
        tree = {}
    if not isinstance(tree, dict):
        msg = f"{name} must be a mapping with keys such as `model`, `data` and `trainer`, got {type(tree).__name__}."
        raise UsageError(msg)
    return Source(f"in {name}", tree, word)


def _scalar(text: str) -> object:
    try:
        return get_loader("yaml")(text)
    except yaml.YAMLError:
        return text


def _nested(keys: Sequence[str], value: object) -> Tree:
    for key in reversed(keys):
        value = {key: value}
    return value if isinstance(value, dict) else {}
