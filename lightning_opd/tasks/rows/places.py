"""What a path names: a file, a folder, or a data set of the hub; and which split its parts belong to."""

from __future__ import annotations

import gzip
import io
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import cast

from lightning_opd.errors import ConfigError, MissingFileError
from lightning_opd.interfaces import Split
from lightning_opd.tasks.rows.source import Rows, RowSource
from lightning_opd.tasks.rows.tables import hub_splits, parquet_rows, saved_splits
from lightning_opd.tasks.rows.text import BYTE_ORDER_MARK, DELIMITERS, csv_rows, json_lines, json_list

ENDINGS = (".jsonl", ".ndjson", ".json", ".parquet", ".csv", ".tsv")
FORMATS = "JSONL, a JSON list, Parquet or CSV, also as .gz"
HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w.-]+(:[\w.-]+)?", re.ASCII)
NO_DATA_FILES = {"config.json", "dataset_infos.json", "dataset_info.json", "state.json", "tokenizer.json"}
SPLIT_NAMES: Mapping[str, Split] = {
    "train": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
}
OTHER_FORMATS = {
    b"version https://git-lfs": "a pointer of Git LFS in place of the data. Fetch the data: `git lfs pull`.",
    b"\xff\xfe": "UTF-16. Convert the file: `iconv -f UTF-16 -t UTF-8`.",
    b"\xfe\xff": "UTF-16. Convert the file: `iconv -f UTF-16 -t UTF-8`.",
    b"PK\x03\x04": "a zip archive or a spreadsheet. Unpack it, or save the spreadsheet as CSV.",
    b"\x28\xb5\x2f\xfd": "compressed by zstd. Unpack it: `zstd -d`.",
    b"\xfd7zXZ": "compressed by xz. Unpack it: `xz -d`.",
    b"BZh": "compressed by bzip2. Unpack it: `bzip2 -d`.",
    b"<": "a page of HTML or XML. Download the data itself.",
    b"ARROW1": "an Arrow file. Name the folder that `save_to_disk` made, or write Parquet.",
}


def sources_of(path: str, setting: str) -> dict[Split, list[RowSource]]:
    """Return what a path holds, by split; without splits of its own, all of it is `train`.

    Args:
        path: A file, a folder, or the name of a data set.
        setting: The argument that names it, for messages.

    Raises:
        ConfigError: There is nothing, or nothing that holds rows.
    """
    found = Path(path).expanduser()
    if path and found.is_file():
        return {"train": [file_source(found)]}
    if path and found.is_dir():
        return _folder_sources(found)
    if HUB_NAME.fullmatch(path) and not _ending(found) and not found.parent.is_dir():
        return _by_split({name: [source] for name, source in hub_splits(path).items()}, path)
    nearby = sorted(p.name for p in found.parent.iterdir()) if path and found.parent.is_dir() else []
    best = next((f" Did you mean `{found.parent / name}`?" for name in nearby if _is_like(name, found.name)), "")
    msg = f"Expected data ({FORMATS}) at `{path}`, found none.{best} Check `data.task.init_args.{setting}`."
    raise MissingFileError(msg)


def file_source(path: Path) -> RowSource:
    """Return the rows of a file, whose format is told by its content, and by its ending where that leaves it open."""
    return RowSource(str(path), f"{path}:", partial(_file_rows, path))


def _file_rows(path: Path, names: frozenset[str]) -> Rows:
    try:
        with _unpacked(path) as file:
            yield from _rows(file, path, names)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        msg = f"`{path}` is a cut off or damaged gzip file ({error}). Copy it again, or unpack it: `gzip -d`."
        raise ConfigError(msg) from None
    except PermissionError:
        msg = f"`{path}` may not be read by this user. Change its permissions."
        raise ConfigError(msg) from None


@contextmanager
def _unpacked(path: Path) -> Iterator[io.BufferedReader]:
    with path.open("rb") as file:
        if not file.peek(2).startswith(b"\x1f\x8b"):
            yield file
            return
        with gzip.GzipFile(fileobj=file) as unpacked:
            yield io.BufferedReader(cast("io.RawIOBase", unpacked))


def _rows(file: io.BufferedReader, path: Path, names: frozenset[str]) -> Rows:
    head = file.peek(4096)
    if head.startswith(b"PAR1"):
        return parquet_rows(file, str(path))
    start = head.removeprefix(BYTE_ORDER_MARK).lstrip()
    is_other = next((said for mark, said in OTHER_FORMATS.items() if start.startswith(mark)), None)
    if is_other is None and b"\x00" in start[:4]:
        is_other = OTHER_FORMATS[b"\xff\xfe"]
    if is_other is None and start and _ending(path) == ".parquet":
        is_other = "no Parquet file. Copy or make it again."
    if is_other:
        msg = f"`{path}` cannot be read: it is {is_other}"
        raise ConfigError(msg)
    if start.startswith(b"["):
        return json_list(file, str(path))
    first = start.split(b"\n", 1)[0].decode("utf-8", errors="replace")
    may_be_csv = _ending(path) in {".csv", ".tsv"} or (not _ending(path) and any(x in first for x in DELIMITERS))
    if may_be_csv and not start.startswith(b"{"):
        return csv_rows(file, str(path), names)
    return json_lines(file, str(path))


def _folder_sources(folder: Path) -> dict[Split, list[RowSource]]:
    names = {path.name for path in folder.iterdir()}
    if names & {"dataset_dict.json", "state.json"}:
        try:
            splits = saved_splits(folder)
        except (OSError, ValueError, KeyError) as error:
            if isinstance(error, ConfigError):
                raise
            msg = f"`{folder}` is a damaged data set of `save_to_disk` ({str(error)[:160]}). Save it again."
            raise ConfigError(msg) from None
        return _by_split({name: [source] for name, source in splits.items()}, str(folder))
    files = [path for path in sorted(folder.rglob("*")) if _is_data_file(path.relative_to(folder)) and path.is_file()]
    endings = sorted({_ending(path) for path in files})
    if not files:
        msg = f"The folder `{folder}` has no data files ({FORMATS}); it has {sorted(names)[:8]}. Name another."
        raise MissingFileError(msg)
    if len(endings) > 1:
        msg = f"The folder `{folder}` has files of several formats: {endings}. Name one file, or one format's folder."
        raise ConfigError(msg)
    parts: dict[str, list[RowSource]] = {}
    for path in files:
        parts.setdefault(_split_name(path.relative_to(folder)), []).append(file_source(path))
    if "" in parts and len(parts) > 1:
        strays = [source.name for source in parts[""]]
        msg = f"The folder `{folder}` has files of splits, and others: {strays[:4]}. Rename them, or name single files."
        raise ConfigError(msg)
    return _by_split(parts, str(folder))


def _by_split(parts: Mapping[str, Sequence[RowSource]], name: str) -> dict[Split, list[RowSource]]:
    """Return a data set's parts under this package's names of splits; one part alone is trained on."""
    if len(parts) == 1:
        return {"train": list(next(iter(parts.values())))}
    found: dict[Split, list[RowSource]] = {}
    for part, sources in parts.items():
        split = SPLIT_NAMES.get(part)
        if split is None:
            msg = (
                f"`{name}` has the splits {sorted(parts)}, and `{part}` is none of train, validation and test. Save "
                "those that you want as files, and name them in `path`, `validation_path` and `test_path`."
            )
            raise ConfigError(msg)
        found[split] = list(sources)
    return found


def _split_name(path: Path) -> str:
    """Return the split that a file's name or folder speaks of, as in `train-00000-of-00002.parquet`, or nothing."""
    for part in (path.name, *reversed(path.parts[:-1])):
        word = re.split(r"[-_.]", part.lower(), maxsplit=1)[0]
        if word in SPLIT_NAMES:
            return SPLIT_NAMES[word]
    return ""


def _is_data_file(path: Path) -> bool:
    hidden = any(part.startswith(".") for part in path.parts)
    return not hidden and path.name not in NO_DATA_FILES and bool(_ending(path))


def _ending(path: Path) -> str:
    """Return the ending that tells the format, without `.gz`; empty where it tells none."""
    ending = Path(path.stem).suffix if path.suffix == ".gz" else path.suffix
    return ending.lower() if ending.lower() in ENDINGS else ""


def _is_like(name: str, other: str) -> bool:
    return name.split(".", maxsplit=1)[0] == other.split(".", maxsplit=1)[0] or name.lower() == other.lower()
