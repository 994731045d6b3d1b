"""Composes mappings over several config files: merged by key, `null` removes an entry.

The parser replaces a mapping as a whole; for the teachers of a merge and the tasks of a mixture a later file usually
means to add one.
"""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lightning_opd.cli.sources import KeyPath, Source, Tree, readable, walk

if TYPE_CHECKING:
    from collections.abc import Sequence

COMPOSED = ("model.teachers", "data.task.tasks")


@dataclass(frozen=True)
class _Mention:
    """A mapping in one of the config files."""

    source: Source
    path: KeyPath
    entries: Tree


def compose_mappings(words: Sequence[str], sources: Sequence[Source]) -> list[str]:
    """Return the command line with the composed mappings added.

    Args:
        words: The command line after the verb.
        sources: What it says.

    Returns:
        The same words; after the last file that mentions a mapping stands an inline `--config` with the merged one.
    """
    files = {source.word: source for source in sources if source.word >= 0}
    added: dict[int, list[str]] = {}
    without_null: dict[int, Tree] = {}
    for key in COMPOSED:
        mentions = [mention for source in files.values() if (mention := _find(source, key)) is not None]
        has_null = [mention for mention in mentions if None in mention.entries.values()]
        if len(mentions) < 2 and not has_null:  # one mention alone needs no merge
            continue
        merged: Tree = {}
        for mention in mentions:
            merged |= mention.entries
        merged = {name: entry for name, entry in merged.items() if entry is not None}
        last = mentions[-1]
        added.setdefault(last.source.word, []).append(json.dumps(_outline(last, merged)))
        for mention in has_null:
            tree = without_null.setdefault(mention.source.word, copy.deepcopy(mention.source.tree))
            _drop_nulls(tree, mention.path)
    composed: list[str] = []
    for index, word in enumerate(words):
        prefix = "--config=" if word.startswith(("--config=", "-c=")) else ""
        composed.append(prefix + json.dumps(without_null[index]) if index in without_null else word)
        composed += [part for text in added.get(index, ()) for part in ("--config", text)]
    return composed


def _find(source: Source, key: str) -> _Mention | None:
    for path, value in walk(source.tree):
        if readable(path) == key and isinstance(value, dict):
            return _Mention(source, path, value)
    return None


def _outline(mention: _Mention, merged: Tree) -> Tree:
    """Return the mentioning file's tree, cut down to the mapping and the classes above it."""
    outline: Tree = {}
    source, target = mention.source.tree, outline
    for key in mention.path[:-1]:
        child, inner = source[key], dict[str, object]()
        if not isinstance(child, dict):  # a path that was found leads through mappings only
            raise AssertionError
        target[key] = inner
        if "class_path" in child:
            inner["class_path"] = child["class_path"]
        source, target = child, inner
    target[mention.path[-1]] = merged
    return outline


def _drop_nulls(tree: Tree, path: KeyPath) -> None:
    node: object = tree
    for key in path:
        node = node[key] if isinstance(node, dict) else None
    if isinstance(node, dict):
        for name in [name for name, entry in node.items() if entry is None]:
            del node[name]
