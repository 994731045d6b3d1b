"""What the user wrote, file by file and option by option, before any parser has an opinion on it."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias, cast

import yaml
from jsonargparse import get_loader

from lightning_opd.cli.shipped import find, note_origin
from lightning_opd.errors import ConfigError, did_you_mean

Tree: TypeAlias = dict[str, object]
KeyPath: TypeAlias = tuple[str, ...]

COMPOSED = ("model.teachers", "data.task.tasks")
"""Mappings that config files and options build together: merged by name, null removes an entry."""


@dataclass(frozen=True)
class Variables:
    """What `${run}`, `${runs}`, `${recipe}` and `${seed}` in a configuration stand for."""

    recipe: Path  # its folder
    output: str = "runs"  # folder for the outputs of all recipes
    seed: int = 0

    def resolve(self, node: object, place: str) -> object:
        """Return a configuration with its variables filled in, or raise a `ConfigError` that names the place."""
        if isinstance(node, Mapping):
            return {key: self.resolve(value, place) for key, value in node.items()}
        if isinstance(node, list):
            return [self.resolve(value, place) for value in node]
        if isinstance(node, str):
            return re.sub(r"\$\{(\w*)\}", lambda found: self._value(found[1], place), node)
        return node

    def _value(self, name: str, place: str) -> str:
        run = f"{self.output}/{self.recipe.resolve().name}/seed{self.seed}"
        values = {"run": run, "runs": self.output, "recipe": str(self.recipe), "seed": str(self.seed)}
        if name not in values:
            known = ", ".join(f"${{{known}}}" for known in values)
            msg = f"`${{{name}}}` {place} is not a variable.{did_you_mean(name, values)} Variables: {known}."
            raise ConfigError(msg)
        return values[name]


@dataclass(frozen=True)
class Source:
    """One config file or option: where messages say it stands, what it says, and which word is composed with others."""

    place: str
    tree: Tree
    word: int = -1  # none: the parser reads it as it is


@dataclass(frozen=True)
class ConfigSources:
    """Everything the user wrote: the words after the command, and in order the config files and options they hold."""

    words: Sequence[str]
    sources: Sequence[Source]

    @classmethod
    def read(cls, words: Sequence[str]) -> ConfigSources:
        """Read the config files and options of a command line, and fill in the variables, or raise a `ConfigError`.

        `${run}` belongs to the recipe of the last config file that stands in a recipe's folder, with seed 0.
        """
        sources: list[Source] = []
        folders: list[Path] = []
        for index, option, value in _options(words):
            if option in {"--config", "-c"} and value:
                sources.append(_read_config(value, index))
                folders += [] if value.lstrip().startswith("{") else [_file(value).parent]
            else:
                sources.append(_read_option(option.removeprefix("--"), value, index))
        if not folders:
            return cls(tuple(words), tuple(sources))
        variables = Variables(([f for f in folders if (f / "recipe.yaml").is_file()] or folders)[-1])
        resolved = [Source(s.place, cast("Tree", variables.resolve(s.tree, s.place)), s.word) for s in sources]
        return cls([str(variables.resolve(word, "on the command line")) for word in words], resolved)

    def inlined(self) -> list[str]:
        """Return the command line with every config file in place of its name, and the mappings composed."""
        composed = [source for source in self.sources if source.word >= 0]
        words = list(self.words)
        for source, tree in zip(composed, _compose([source.tree for source in composed]), strict=True):
            text = yaml.safe_dump(tree, default_flow_style=True, default_style='"', sort_keys=False, width=10**9)
            is_value = not words[source.word].startswith("--")  # of the option in the word before
            words[source.word - is_value : source.word + 1] = ["--config", text] if is_value else [f"--config={text}"]
        return words

    def mentions(self) -> Iterator[tuple[KeyPath, object, str]]:
        """Yield key path (without `init_args`), value and place of all that was written, the last first."""
        for source in reversed(self.sources):
            for path, value in reversed(list(_walk(source.tree))):
                keys = tuple(key.removesuffix("+") for key in path if key not in {"init_args", "class_path"})
                yield keys, value, source.place


def read_yaml(name: str, text: str) -> object:
    """Parse YAML as the parser does, or raise a `ConfigError` that names it; an empty text is an empty mapping."""
    try:
        content = get_loader("yaml")(text)
    except yaml.YAMLError as error:
        msg = f"{name} is not valid YAML: {' '.join(str(error).split())}"
        raise ConfigError(msg) from error
    return {} if content is None else content


def _options(words: Sequence[str]) -> Iterator[tuple[int, str, str]]:
    """Yield the index of the word that holds an option's value, the option, and the value."""
    index = 0
    while index < len(words):
        option, equals, value = words[index].partition("=")
        if option.startswith("-") and not equals and index + 1 < len(words) and not words[index + 1].startswith("--"):
            index += 1
            value = words[index]
        if option.startswith("-"):
            yield index, option, value
        index += 1


def _read_config(value: str, word: int) -> Source:
    is_inline = value.lstrip().startswith("{")
    name = "an inline --config" if is_inline else f"`{value}`"
    tree = read_yaml(name, value if is_inline else _file(value).read_text(encoding="utf-8"))
    if not is_inline:
        note_origin(value, _file(value))
    if not isinstance(tree, dict):
        msg = f"{name} must be a mapping with keys such as `model`, `data` and `trainer`, got {type(tree).__name__}."
        raise ConfigError(msg)
    return Source(f"in {name}", tree, word)


def _file(name: str) -> Path:
    return find(name, "*.yaml", "config file")


def _read_option(key: str, value: str, word: int) -> Source:
    is_entry = (name := key.replace(".init_args", "")).rpartition(".")[0] in COMPOSED
    try:
        node: object = get_loader("yaml")(value)
    except yaml.YAMLError:
        node = value
    if is_entry and not isinstance(node, Mapping | None):
        node = value  # a path stays as it was typed
    for part in reversed(key.split(".")):
        node = {part: node}
    return Source("on the command line", cast("Tree", node), word if is_entry or name in COMPOSED else -1)


def _walk(tree: object, path: KeyPath = ()) -> Iterator[tuple[KeyPath, object]]:
    """Yield every key path with its value, parents first; indices of lists count as keys."""
    items = tree.items() if isinstance(tree, Mapping) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        yield (*path, str(key)), value
        yield from _walk(value, (*path, str(key)))


def _compose(trees: Sequence[Tree]) -> list[Tree]:
    """Return copies in which a later file's composed mapping holds the entries of the earlier ones, too."""
    composed = copy.deepcopy(list(trees))
    for key in COMPOSED:
        merged: Tree = {}
        for tree in composed:
            for path, entries in list(_walk(tree)):
                if ".".join(part for part in path if part != "init_args") == key and isinstance(entries, dict):
                    merged = {name: entry for name, entry in (merged | entries).items() if entry is not None}
                    entries.clear()
                    entries.update(copy.deepcopy(merged))
    return composed
