"""The prompts of every split, read once from where the settings say."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

from lightning_opd.errors import ConfigError
from lightning_opd.interfaces import Split
from lightning_opd.tasks.rows.builder import PromptBuilder
from lightning_opd.tasks.rows.places import sources_of
from lightning_opd.tasks.rows.source import Row, RowSource, list_source
from lightning_opd.tasks.rows.store import PromptStore
from lightning_opd.tasks.splits import SplitFractions
from lightning_opd.types import Prompt

Given: TypeAlias = str | Path | Iterable[Mapping[str, Any]] | None
"""A path, the rows themselves, or nothing."""
SETTINGS: Mapping[Split, str] = {"train": "path", "validation": "validation_path", "test": "test_path"}


class PromptSets:
    """Prompts by split.

    Args:
        given: What the settings name for each split.
        fractions: How many of the training split's rows the others get; None for none.
        builder: Makes prompts of rows.
    """

    def __init__(self, given: Mapping[Split, Given], fractions: SplitFractions | None, builder: PromptBuilder) -> None:
        """Remember the settings."""
        self._given, self._fractions, self._builder = given, fractions, builder
        self._stores: dict[Split, PromptStore] = {}
        self._prompts: dict[Split, Sequence[Prompt]] = {}

    def prompts(self, split: Split) -> Sequence[Prompt]:
        """Return the prompts of a split: in the rows' order, or in that of a hash where the split is a fraction.

        Raises:
            ConfigError: There are no rows, or a row is wrong, or a split is asked for twice.
        """
        if split not in self._prompts:
            self._prompts[split] = self._split(split)
        return self._prompts[split]

    def sample(self, split: Split) -> Sequence[Prompt]:
        """Return the same, in an order in which the first N are a random sample unless the user made the split."""
        is_whole = self._fractions is None and self._given["validation"] is None and self._given["test"] is None
        if split == "train" and is_whole and len(self._of_path) == 1:
            return self._stored(split).shuffled()
        return self.prompts(split)

    def name(self, split: Split) -> str:
        """Return what holds a split's rows, for messages."""
        given = self._given[split] if self._given[split] is not None else self._given["train"]
        return f"`{given}`" if isinstance(given, str | Path) else "the list of rows"

    def _split(self, split: Split) -> Sequence[Prompt]:
        sources, fractions = self._sources(split), self._fractions
        is_cut = fractions is not None and fractions.of_split(split) > 0
        if is_cut and sources and split != "train":
            msg = (
                f"`split` takes a fraction of the training rows for `{split}`, for which {self.name(split)} has rows "
                f"of its own. Leave `{split}` out of `split`, or those rows."
            )
            raise ConfigError(msg)
        if fractions is not None and is_cut:
            return self._stored("train").split(fractions, split)
        return self._stored(split).all() if sources else []

    @cached_property
    def _of_path(self) -> Mapping[Split, Sequence[RowSource]]:
        return _found(self._given["train"], "train")

    def _sources(self, split: Split) -> Sequence[RowSource]:
        given = self._given[split]
        if given is None:
            return [] if self._given["train"] == "" else self._of_path.get(split, [])
        found = self._of_path if split == "train" else _found(given, split)
        return found[split] if split in found else found.get("train", [])

    def _stored(self, split: Split) -> PromptStore:
        if split not in self._stores:
            self._stores[split] = self._read(split)
        return self._stores[split]

    def _read(self, split: Split) -> PromptStore:
        store, columns = PromptStore(), self._builder.columns
        last: Row = {}
        for source in self._sources(split):
            for number, last in source.read(columns.needed("prompt")):
                store.add(self._builder.build(last, f"{source.place}{number}"), source.place, number)
        if not len(store):
            needed = " and ".join(f"`{name}`" for name in ("prompt", "teacher"))
            msg = f"{self.name(split)} has no prompts. Write rows, such as one JSON object per line, with {needed}."
            raise ConfigError(msg)
        columns.check_seen(self.name(split), last)
        return store


def _found(given: Given, split: Split) -> Mapping[Split, Sequence[RowSource]]:
    if isinstance(given, str | Path):
        return sources_of(str(given), SETTINGS[split])
    return {"train": [list_source(given or [])]}
