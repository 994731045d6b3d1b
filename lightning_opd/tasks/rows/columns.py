"""Which column of a row holds the prompt, the answer, and the rest."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from lightning_opd.errors import ConfigError, closest, did_you_mean
from lightning_opd.tasks.rows.source import Row
from lightning_opd.types import TEMPLATE_SETTINGS

NAMES: Final = (
    "prompt",
    "messages",
    "answer",
    "response",
    "completion",
    "teacher",
    "domain",
    "tools",
    "system",
    TEMPLATE_SETTINGS,
)
"""What a row can have for this package; of these, `domain` and `system` are read only where they are mapped."""
USUAL: Mapping[str, tuple[str, ...]] = {
    "prompt": ("question", "problem", "instruction", "input", "query", "text", "user"),
    "messages": ("conversations", "conversation", "message", "chat", "dialog", "dialogue", "turns"),
    "teacher": ("expert", "domain", "source", "subject", "task", "category"),
}
"""Names that other data sets give to these columns."""


class Columns:
    """The columns of a file under the names that this package knows.

    Args:
        mapping: Known name → the file's column; names that are left out are the file's own.

    Raises:
        ConfigError: A name is not known, or is mapped twice.
    """

    def __init__(self, mapping: Mapping[str, str] | None) -> None:
        """Refuse what is not known."""
        self.mapping = dict(mapping or {})
        for name, column in self.mapping.items():
            if name not in NAMES:
                swapped = f" Write it as `{column}: {name}`." if column in NAMES else did_you_mean(name, NAMES)
                msg = f"`columns` maps `{name}`, which is none of {list(NAMES)}.{swapped}"
                raise ConfigError(msg)
            if not isinstance(column, str) or not column:
                msg = f"`columns` maps `{name}` to {column!r}; expected the name of a column, as in `{name}: question`."
                raise ConfigError(msg)
        for pair in (("prompt", "messages"), ("response", "completion")):
            if set(pair) <= self.mapping.keys():
                msg = f"`columns` maps `{pair[0]}` and `{pair[1]}`; a row has one of them. Leave one out."
                raise ConfigError(msg)
        self._seen: set[str] = set()

    def one_of(self, first: str, second: str, row: Row, place: str) -> tuple[str, object] | None:
        """Return the known name and the value of the one that a row has, or None where it has neither.

        Raises:
            ConfigError: It has both, and neither is mapped.
        """
        names = [name for name in (first, second) if name in self.mapping] or (first, second)
        found = [(name, value) for name in names if (value := self.get(name, row)) is not None]
        if len(found) > 1:
            msg = (
                f"{place}: the row has `{first}` and `{second}`. Leave one out, or say which one counts: "
                f"`columns: {{{first}: {first}}}` or `columns: {{{second}: {second}}}`."
            )
            raise ConfigError(msg)
        return found[0] if found else None

    def get(self, name: str, row: Row) -> object:
        """Return a row's value under a known name; None where it has none."""
        column = self.mapping.get(name)
        if column is None:
            return row.get(name)
        if column in row:
            self._seen.add(name)
        return row.get(column)

    def needed(self, name: str) -> frozenset[str]:
        """Return the columns of which a file has one, so that there is a value under a known name."""
        if name in ("prompt", "messages"):
            mapped = {self.mapping[key] for key in ("prompt", "messages") if key in self.mapping}
            return frozenset(mapped or {"prompt", "messages"})
        return frozenset({self.mapping.get(name, name)})

    def missing(self, name: str, row: Row, place: str) -> ConfigError:
        """Return the error of a row that has nothing where it must have something."""
        wanted = self.mapping.get(name)
        if wanted is not None:
            hint = did_you_mean(wanted, row)
            said = f"expected `{wanted}` (`columns` maps `{name}` to it), got the columns {_shown(row)}.{hint}"
            return ConfigError(f"{place}: {said} Correct `columns`, or the row.")
        if name != "prompt":
            constant = f"`{name}: …` for all rows"
            cure = f"Add it, set {constant}, or name its column: `columns: {{{name}: {_guess(name, row)}}}`."
            return ConfigError(f"{place}: expected `{name}`, got the columns {_shown(row)}. {cure}")
        other = "messages" if _usual("messages", row) else "prompt"
        cure = f"Add one, or name its column: `columns: {{{other}: {_guess(other, row)}}}`."
        needed = "`prompt` (a text) or `messages` (a list of role and content)"
        return ConfigError(f"{place}: expected {needed}, got the columns {_shown(row)}. {cure}")

    def check_seen(self, place: str, row: Row) -> None:
        """Refuse a mapped column that no row had.

        Args:
            place: What was read.
            row: One of its rows, whose columns are named.
        """
        unseen = self.mapping.keys() - self._seen
        self._seen = set()
        for name in unseen:
            column = self.mapping[name]
            msg = (
                f"No row of {place} has the column `{column}`, to which `columns` maps `{name}`; the columns of one "
                f"are {_shown(row)}.{did_you_mean(column, row)} Correct `columns`."
            )
            raise ConfigError(msg)


def _shown(row: Iterable[str]) -> str:
    names = sorted(str(name) for name in row)
    return str(names) if len(names) <= 12 else f"{names[:12]} and {len(names) - 12} more"


def _usual(name: str, row: Row) -> str | None:
    return next((column for column in USUAL[name] if column in row), None)


def _guess(name: str, row: Row) -> str:
    """Return the column that is probably meant, or dots."""
    return closest(name, row) or _usual(name, row) or "…"
