"""Rows of tables: Parquet files through pyarrow, Hugging Face data sets through `datasets`."""

from __future__ import annotations

import importlib
import io
from collections.abc import Iterable, Mapping
from types import ModuleType
from typing import TYPE_CHECKING

from lightning_opd.errors import ConfigError, MissingPackageError
from lightning_opd.models.hub import hub_problem
from lightning_opd.tasks.rows.source import Row, Rows, RowSource

if TYPE_CHECKING:
    from pathlib import Path

    from datasets import Dataset, DatasetDict

ROWS_AT_ONCE = 1024
INSTALL = 'Install it: pip install "lightning-opd[data]".'


def parquet_rows(file: io.BufferedReader, path: str) -> Rows:
    """Yield the rows of a Parquet file, a thousand at a time.

    Raises:
        MissingPackageError: pyarrow is not installed.
        ConfigError: The file is damaged.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        msg = f"`{path}` is a Parquet file, which needs the library pyarrow. {INSTALL}"
        raise MissingPackageError(msg) from None
    try:
        is_packed = not isinstance(file.raw, io.FileIO)  # a table is read at many places, which gzip cannot
        table = pq.ParquetFile(io.BytesIO(file.read()) if is_packed else path)
        yield from _numbered(batch.to_pylist() for batch in table.iter_batches(ROWS_AT_ONCE))
    except (pa.ArrowException, OSError) as error:
        first = str(error).strip().split("\n", maxsplit=1)[0]
        msg = f"`{path}` is a damaged Parquet file ({first[:120]}). Copy or make it again."
        raise ConfigError(msg) from None


def saved_splits(folder: Path) -> dict[str, RowSource]:
    """Return the splits of a data set that `save_to_disk` made, or the data set as `train`."""
    return _splits(_datasets(str(folder)).load_from_disk(str(folder)), str(folder))


def hub_splits(name: str) -> dict[str, RowSource]:
    """Return the splits of a data set of the Hugging Face hub, or of its cache where the hub does not answer soon.

    Args:
        name: `org/name`, or `org/name:configuration`.

    Raises:
        ConfigError: It cannot be loaded: there is none, or no network, or it needs a configuration.
    """
    datasets = _datasets(name)
    path, _, configuration = name.partition(":")
    problem = hub_problem(path, "dataset")
    try:
        load = datasets.load_dataset if problem is None else _cached
        loaded = load(path, configuration or None)
    except Exception as error:
        said = " ".join(str(error).split())[:200].rstrip(".")
        where = problem or ", and the hub gives no data set of that name"
        msg = (
            f"Expected data at `{name}`, which is no file or folder{where}: {said}. Correct the path, or check the "
            "network; a configuration is named as `org/name:main`."
        )
        raise ConfigError(msg) from None
    return _splits(loaded, name)


def _cached(path: str, configuration: str | None) -> Dataset | DatasetDict:
    """Return a data set that was loaded before; `load_dataset` would ask the hub for half a minute first."""
    from datasets.packaged_modules.cache.cache import Cache

    builder = Cache(
        dataset_name=path.rpartition("/")[-1], repo_id=path, config_name=configuration, version="auto", hash="auto"
    )
    builder.download_and_prepare()
    return builder.as_dataset()


def _datasets(name: str) -> ModuleType:
    try:
        return importlib.import_module("datasets")
    except ImportError:
        msg = f"`{name}` is a Hugging Face data set, which needs the library datasets. {INSTALL}"
        raise MissingPackageError(msg) from None


def _splits(loaded: Dataset | DatasetDict, name: str) -> dict[str, RowSource]:
    parts = loaded if isinstance(loaded, Mapping) else {"train": loaded}
    return {split: _dataset_source(part, f"{name} ({split})") for split, part in parts.items()}


def _dataset_source(part: Dataset, name: str) -> RowSource:
    def read(_: frozenset[str]) -> Rows:
        tables = part.with_format("arrow").iter(ROWS_AT_ONCE)
        yield from _numbered(table.to_pylist() for table in tables)

    return RowSource(name, f"{name}:", read)


def _numbered(batches: Iterable[list[dict[str, object]]]) -> Rows:
    number = 0
    for batch in batches:
        for row in batch:
            number += 1
            yield number, _without_gaps(row)


def _without_gaps(row: Row) -> dict[str, object]:
    """Return a row without nulls: a table has them wherever another row has a key that this one lacks."""
    return {key: _filled(value) for key, value in row.items() if value is not None}


def _filled(value: object) -> object:
    if isinstance(value, dict):
        return _without_gaps(value)
    return [_filled(item) for item in value] if isinstance(value, list) else value
