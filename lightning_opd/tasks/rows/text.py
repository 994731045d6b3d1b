"""Rows of text files: one JSON object per line, one JSON list of objects, or CSV."""

from __future__ import annotations

import csv
import io
import json
import re
import sys
from collections.abc import Iterable, Iterator

from lightning_opd.errors import ConfigError
from lightning_opd.tasks.rows.source import Rows

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
DELIMITERS = ",;\t"
_SPACE = re.compile(r"\s*")


class _RepeatedKeyError(ValueError):
    """An object that has a key twice."""


def _without_repetition(pairs: list[tuple[str, object]]) -> dict[str, object]:
    row = dict(pairs)
    if len(row) < len(pairs):
        keys = [key for key, _ in pairs]
        raise _RepeatedKeyError(next(key for key in keys if keys.count(key) > 1))
    return row


DECODER = json.JSONDecoder(object_pairs_hook=_without_repetition)


def json_lines(file: Iterable[bytes], path: str) -> Rows:
    """Yield the objects of a file that has one per line; empty lines are skipped."""
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        place = f"{path}:{number}"
        try:
            row = DECODER.decode(line.decode("utf-8-sig"))
        except (ValueError, RecursionError) as error:
            shown = line.strip()[:60].decode("utf-8", errors="replace")
            raise _json_error(error, place, f"one JSON object per line (UTF-8), got {shown!r}") from None
        yield number, _object(row, place)


def json_list(file: io.BufferedReader, path: str) -> Rows:
    """Yield the objects of a file that is one JSON list; their numbers are the lines on which they begin."""
    text = _whole_text(file, path)
    at = _after_space(text, _after_space(text, 0) + 1)
    line, counted = 1, 0
    after = text[at : at + 1]
    while after != "]":
        line, counted = line + text.count("\n", counted, at), at
        place = f"{path}:{line}"
        try:
            row, at = DECODER.raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            raise _json_error(error, place, f"a JSON object, got {text[at : at + 60]!r}") from None
        yield line, _object(row, place)
        at = _after_space(text, at)
        after = text[at : at + 1]
        if after == ",":
            at = _after_space(text, at + 1)
        elif after != "]":
            got = repr(text[at : at + 60]) if after else "the end of the file"
            msg = f"{place}: expected `,` or `]` after this row of the JSON list, got {got}. Is the file cut off?"
            raise ConfigError(msg)
    rest = text[at + 1 :].strip()
    if rest:
        msg = f"`{path}`: expected nothing after the JSON list, got {rest[:60]!r}. Write one list, or one row per line."
        raise ConfigError(msg)


def csv_rows(file: Iterable[bytes], path: str, names: frozenset[str]) -> Rows:
    """Yield the rows of a CSV file under the names of its first line; empty cells are left out.

    Args:
        file: The file's lines.
        path: Of the file, for messages.
        names: The header has at least one of them.
    """
    csv.field_size_limit(sys.maxsize)  # a chat may be longer than the 131,072 characters that are the default
    lines = _decoded(file, path)
    number, first = next(((number, line) for number, line in enumerate(lines, 1) if line.strip()), (0, ""))
    delimiter = max(DELIMITERS, key=first.count)
    header = [name.strip() for name in next(csv.reader([first], delimiter=delimiter), [])]
    _check_header(header, f"{path}:{number}", names)
    skipped = number
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    while True:
        place = f"{path}:{number + 1}"
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            msg = f"{place}: this row of the CSV file cannot be read ({error}). Correct its quotes and line ends."
            raise ConfigError(msg) from None
        if cells and len(cells) != len(header):
            msg = (
                f"{place}: expected {len(header)} cells as in the header {header}, got {len(cells)}. "
                'Put cells with line ends or delimiters between quotes ("…").'
            )
            raise ConfigError(msg)
        if any(cell.strip() for cell in cells):
            yield number + 1, {name: cell for name, cell in zip(header, cells, strict=True) if cell != ""}
        number = skipped + reader.line_num


def _check_header(header: list[str], place: str, names: frozenset[str]) -> None:
    repeated = sorted({name for name in header if header.count(name) > 1})
    if repeated:
        msg = f"{place}: the header has `{repeated[0]}` twice. Give every column a name of its own."
        raise ConfigError(msg)
    if header and not names.intersection(header):
        needed = " or ".join(f"`{name}`" for name in sorted(names, reverse=True))
        msg = (
            f"{place}: expected a header with {needed}, got {[cell[:40] for cell in header]}. Write the names of the "
            "columns into the first line, or say which one it is: `columns: {prompt: …}`."
        )
        raise ConfigError(msg)


def _decoded(file: Iterable[bytes], path: str) -> Iterator[str]:
    for number, line in enumerate(file, 1):
        try:
            yield line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise _encoding_error(path, number, error) from None


def _whole_text(file: io.BufferedReader, path: str) -> str:
    """Return a file's text; its bytes, which take as much memory again, are let go before a row is read."""
    content = file.read().removeprefix(BYTE_ORDER_MARK)
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise _encoding_error(path, content.count(b"\n", 0, error.start) + 1, error) from None


def _after_space(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    return found.end() if found else at


def _object(row: object, place: str) -> dict[str, object]:
    if not isinstance(row, dict):
        msg = f"{place}: expected a JSON object, got {type(row).__name__}. Write {{...}} with named columns."
        raise ConfigError(msg)  # the file is wrong, not an argument's type
    return row


def _json_error(error: Exception, place: str, expected: str) -> ConfigError:
    if isinstance(error, _RepeatedKeyError):
        return ConfigError(f"{place}: an object has the key `{error}` twice. Leave one of them out.")
    if expected.endswith("'{'"):
        cure = "Write each object on a line of its own, or all of them as one list: [{...}, {...}]."
        return ConfigError(f"{place}: expected {expected} ({error}). {cure}")
    return ConfigError(f"{place}: expected {expected} ({error}). Correct the line.")


def _encoding_error(path: str, number: int, error: UnicodeDecodeError) -> ConfigError:
    cure = "Convert the file: `iconv -f LATIN1 -t UTF-8`."
    return ConfigError(f"{path}:{number}: expected UTF-8, got the byte {error.object[error.start]:#x}. {cure}")
