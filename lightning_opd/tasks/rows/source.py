"""Where rows come from: something with a name that yields numbered rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from lightning_opd.errors import ConfigError

Row: TypeAlias = Mapping[str, object]
"""Column → value."""
Rows: TypeAlias = Iterator[tuple[int, Row]]
"""Rows with their numbers: lines of a text file, or rows of a table; from 1."""


@dataclass(frozen=True)
class RowSource:
    """A file, a table or a list of rows, which is read when it is asked for.

    Args:
        name: As messages say it, such as the path.
        place: What stands before a row's number in messages, such as `rows.jsonl:`.
        read: Yields the rows with their numbers, given the names of which a header has at least one.
    """

    name: str
    place: str
    read: Callable[[frozenset[str]], Rows]


def list_source(rows: Iterable[object]) -> RowSource:
    """Return the rows of a Python list, or of anything that yields mappings."""

    def read(_: frozenset[str]) -> Rows:
        for number, row in enumerate(rows, 1):
            if not isinstance(row, Mapping):
                msg = (
                    f"row {number}: expected a mapping from columns to values, got {type(row).__name__}. Give a list "
                    "of dictionaries; of a DataFrame that is `frame.to_dict('records')`."
                )
                raise ConfigError(msg)
            yield number, row

    return RowSource("the list of rows", "row ", read)
