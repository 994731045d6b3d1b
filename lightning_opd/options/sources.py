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

from lightning_opd.errors import ConfigError, MissingFileError, did_you_mean
from lightning_opd.options.shipped import find, note_origin

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


def read_text(path: Path, what: str) -> str:
    """Return the text of a file in UTF-8, or raise a `ConfigError` that names it."""
    if path.is_dir():
        msg = f"{what} `{path}` is a folder; name a file in it."
        raise MissingFileError(msg)
    if not path.is_file():
        names = [file.name for file in path.parent.iterdir()] if path.parent.is_dir() else []
        cure = did_you_mean(path.name, names)
        msg = f"{what} `{path}` does not exist (looked in `{Path.cwd()}`).{cure}"
        raise MissingFileError(msg)
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        msg = f"{what} `{path}` is not text in UTF-8 (byte {error.start + 1}); save it in that encoding."
        raise ConfigError(msg) from None
    except OSError as error:
        msg = f"{what} `{path}` cannot be read: {error.strerror}."
        raise ConfigError(msg) from None


def read_yaml(name: str, text: str) -> object:
    """Parse YAML as the parser does, or raise a `ConfigError` that names it; an empty text is an empty mapping."""
    try:
        root = yaml.compose(text, Loader=yaml.CSafeLoader)
        content = get_loader("yaml")(text)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        reason = " ".join(str(error).replace('in "<unicode string>", ', "at ").split())
        cure = " Write one document per file." if "single document" in reason else ""
        msg = f"{name} is not valid YAML: {reason}.{cure}"
        raise ConfigError(msg) from error
    _check_keys(name, root)
    return {} if content is None else content


def _check_keys(name: str, node: yaml.Node | None, path: KeyPath = ()) -> None:
    """Refuse a key that stands twice in one mapping, of which YAML would keep the last without a word."""
    if isinstance(node, yaml.SequenceNode):
        for index, entry in enumerate(node.value):
            _check_keys(name, entry, (*path, str(index)))
    if not isinstance(node, yaml.MappingNode):
        return
    seen: set[str] = set()
    for key, value in node.value:
        word = str(key.value)
        if word in seen and word != "<<":
            full, line = ".".join((*path, word)), key.start_mark.line + 1
            msg = f"{name} has the key `{full}` twice, the second time in line {line}. Keep one of them."
            raise ConfigError(msg)
        if not path and key.tag != "tag:yaml.org,2002:str" and word != "<<":
            msg = f"{name} has the key `{word}` in line {key.start_mark.line + 1}, which is no word such as `model`."
            raise ConfigError(msg)
        seen.add(word)
        _check_keys(name, value, (*path, word))


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
    text = value if is_inline else read_text(_file(value), "config file")
    tree = read_yaml(name, text)
    if not text.strip():
        msg = f"{name} is empty; expected keys such as `model`, `data` and `trainer`. Leave the file out, or fill it."
        raise ConfigError(msg)
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
