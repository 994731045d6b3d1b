"""The same rows in every format that people have."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lightning_opd.errors import ConfigError, MissingPackageError
from lightning_opd.tasks import Jsonl

ROWS: list[dict[str, Any]] = [
    {"prompt": "Was ist 1 + 1?", "teacher": "math", "answer": "2"},
    {"prompt": 'Say "hi",\nthen stop; über 9000.', "teacher": "code", "answer": "hi"},
    {"prompt": "No answer?", "teacher": "math"},
]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()


def as_csv(delimiter: str = ",") -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, ["prompt", "teacher", "answer"], delimiter=delimiter)
    writer.writeheader()
    writer.writerows(ROWS)
    return text.getvalue().encode()


def as_parquet() -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(ROWS), out)
    return out.getvalue()


FORMATS: dict[str, tuple[str, Callable[[], bytes]]] = {
    "JSONL": ("rows.jsonl", lambda: LINES),
    "JSONL with another ending": ("rows.txt", lambda: LINES),
    "JSONL that ends in .csv": ("rows.csv", lambda: LINES),
    "JSON list": ("rows.json", lambda: json.dumps(ROWS).encode()),
    "indented JSON list": ("rows.json", lambda: b"\xef\xbb\xbf\n" + json.dumps(ROWS, indent=2).encode() + b"\n"),
    "JSON list that ends in .jsonl": ("rows.jsonl", lambda: json.dumps(ROWS).encode()),
    "CSV": ("rows.csv", as_csv),
    "CSV of a spreadsheet": ("rows.csv", lambda: b"\xef\xbb\xbf" + as_csv(";")),
    "CSV with space above and in its header": ("rows.csv", lambda: b"\n" + as_csv().replace(b",teacher", b", teacher")),
    "TSV": ("rows.tsv", lambda: as_csv("\t")),
    "CSV without an ending": ("rows", as_csv),
    "Parquet": ("rows.parquet", as_parquet),
    "Parquet without an ending": ("rows", as_parquet),
}


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gz"])
@pytest.mark.parametrize(("name", "content"), FORMATS.values(), ids=FORMATS.keys())
def test_a_file_of_any_format_has_the_same_prompts(
    name: str, content: Callable[[], bytes], packed: bool, tmp_path: Path
) -> None:
    path = tmp_path / (f"{name}.gz" if packed else name)
    path.write_bytes(gzip.compress(content()) if packed else content())
    prompts = Jsonl(str(path)).prompts("train")
    expected = Jsonl(ROWS).prompts("train")
    assert len(prompts) == 3
    assert [p.messages for p in prompts] == [p.messages for p in expected]
    assert [p.key for p in prompts] == [p.key for p in expected]
    assert [p.teacher for p in prompts] == ["math", "code", "math"]
    assert [p.columns.get("answer") for p in prompts] == ["2", "hi", None]
    assert all(p.place.startswith(f"{path}:") for p in prompts)


@pytest.mark.parametrize(
    ("name", "content", "lines"),
    [
        ("rows.jsonl", LINES.replace(b"\n", b"\n\n"), [1, 3, 5]),
        ("rows.json", json.dumps(ROWS, indent=1).encode(), [2, 7, 12]),
        ("rows.csv", as_csv(), [2, 3, 5]),
        ("rows.parquet", as_parquet(), [1, 2, 3]),
    ],
)
def test_a_prompt_knows_the_line_on_which_its_row_begins(
    name: str, content: bytes, lines: list[int], tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    assert [p.place for p in Jsonl(str(path)).prompts("train")] == [f"{path}:{line}" for line in lines]


def test_a_list_has_numbered_rows_and_may_be_given_for_every_split() -> None:
    task = Jsonl(ROWS, validation_path=ROWS[:1])
    assert [p.place for p in task.prompts("train")] == ["row 1", "row 2", "row 3"]
    assert [len(task.prompts(split)) for split in ("train", "validation", "test")] == [3, 1, 0]


def test_a_path_object_is_a_path(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(LINES)
    assert len(Jsonl(tmp_path / "rows.jsonl").prompts("train")) == 3


def test_a_folder_of_files_is_read_in_order_of_their_names(tmp_path: Path) -> None:
    for number in (1, 0, 2):
        (tmp_path / f"part-{number}.jsonl").write_text(json.dumps({**ROWS[0], "prompt": str(number)}))
    (tmp_path / "README.md").write_text("about")
    (tmp_path / ".hidden.jsonl").write_text("{")
    assert [p.messages[0]["content"] for p in Jsonl(str(tmp_path)).prompts("train")] == ["0", "1", "2"]


@pytest.mark.parametrize(
    "names", [("train-0.json", "dev.json", "test.json"), ("train/0.json", "val/0.json", "test/0.json")]
)
def test_a_folders_own_splits_are_kept(names: tuple[str, ...], tmp_path: Path) -> None:
    for row, name in zip(ROWS, names, strict=True):
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / name).write_text(json.dumps([row]))
    task = Jsonl(str(tmp_path / "data"))
    assert [task.prompts(split)[0].messages[0]["content"] for split in ("train", "validation", "test")] == [
        row["prompt"] for row in ROWS
    ]


def test_a_saved_data_set_is_read_with_its_splits(tmp_path: Path) -> None:
    import datasets

    whole = datasets.Dataset.from_list([{**row, "answer": row.get("answer")} for row in ROWS])
    whole.save_to_disk(tmp_path / "one")
    parts = datasets.DatasetDict({"train": whole.select([0, 1]), "test": whole.select([2])})
    parts.save_to_disk(tmp_path / "two")
    assert list(Jsonl(str(tmp_path / "one")).prompts("train")) == list(Jsonl(ROWS).prompts("train"))
    task = Jsonl(str(tmp_path / "two"))
    assert [len(task.prompts(split)) for split in ("train", "validation", "test")] == [2, 0, 1]
    assert task.prompts("test")[0].place == f"{tmp_path / 'two'} (test):1"
    assert len(Jsonl(whole).prompts("train")) == 3, "a data set that is loaded is a sequence of rows"
    (tmp_path / "two" / "train" / "state.json").unlink()
    with pytest.raises(ConfigError, match="damaged data set of `save_to_disk`"):
        Jsonl(str(tmp_path / "two")).prompts("train")


def test_a_name_is_asked_of_the_hub_and_its_failure_is_one_line() -> None:
    with pytest.raises(ConfigError, match=r"`nobody/nothing:main`, which is no file.*HF_HUB_OFFLINE") as caught:
        Jsonl("nobody/nothing:main").prompts("train")
    assert "\n" not in str(caught.value)


def test_nulls_of_a_table_are_gaps_and_nested_columns_may_be_json(tmp_path: Path) -> None:
    call = {"function": {"name": "now", "arguments": '{"zone": "UTC"}'}}
    rows: list[dict[str, Any]] = [
        {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}], "teacher": "a"},
        {"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "tool_calls": [call]}], "teacher": "a"},
    ]
    tools = [{"name": "now", "description": "Time.", "parameters": {"properties": {}}}]
    rows = [{**row, "tools": json.dumps(tools)} for row in rows]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    (tmp_path / "rows.csv").write_text("")
    with (tmp_path / "rows.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["messages", "teacher", "tools"])
        writer.writeheader()
        writer.writerows({**row, "messages": json.dumps(row["messages"])} for row in rows)
    expected = Jsonl(rows).prompts("train")
    for name in ("rows.parquet", "rows.csv"):
        prompts = Jsonl(str(tmp_path / name)).prompts("train")
        assert [(p.messages, p.key) for p in prompts] == [(p.messages, p.key) for p in expected]
        assert prompts[0].columns["response"] == "Hello"
        assert "tool_calls" not in prompts[0].columns
        assert prompts[1].columns["tool_calls"] == expected[1].columns["tool_calls"]


@pytest.mark.parametrize(("name", "library"), [("rows.parquet", "pyarrow"), ("saved", "datasets")])
def test_a_missing_library_is_named_with_its_install_line(
    name: str, library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "rows.parquet").write_bytes(as_parquet())
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "state.json").write_text("{}")
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(
        MissingPackageError, match=rf'library {library}\. Install it: pip install "lightning-opd\[data\]"'
    ):
        Jsonl(str(tmp_path / name)).prompts("train")


def test_a_cell_may_be_longer_than_the_csv_modules_limit(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text(f"prompt,teacher\n{'long ' * 40_000},math\n")
    [prompt] = Jsonl(str(tmp_path / "rows.csv")).prompts("train")
    assert len(str(prompt.messages[0]["content"])) == 200_000


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(LINES)
    path.chmod(0)
    with pytest.raises(ConfigError, match="may not be read"):
        Jsonl(str(path)).prompts("train")
