"""Rows and files that cannot be meant: one line with file, line and cure."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from lightning_opd.errors import ConfigError, MissingFileError
from lightning_opd.tasks import Jsonl
from lightning_opd.tasks.rows.source import list_source

GOOD = {"prompt": "1 + 1?", "teacher": "math", "answer": "2"}


def refusal(path: Path | list[Any], **settings: Any) -> str:
    """Return what is said about a file, which must be one line."""
    with pytest.raises(ConfigError) as caught:
        Jsonl(path, **settings).prompts("train")
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 420, text
    return text


def user(content: Any = "Hi") -> dict[str, Any]:
    return {"role": "user", "content": content}


def chat(*messages: Any) -> dict[str, Any]:
    return {"messages": list(messages), "teacher": "math"}


ROWS: dict[str, tuple[str | dict[str, Any], list[str]]] = {
    "a role of ShareGPT": (chat({"role": "human", "content": "x"}), ["'human'", "Did you mean `user`?"]),
    "a misspelled role": (chat({"role": "sytem", "content": "x"}, user()), ["'sytem'", "Did you mean `system`?"]),
    "a role with a capital": (chat({"role": "User", "content": "x"}), ["'User'", "Did you mean `user`?"]),
    "a role that is a number": (chat({"role": 1, "content": "x"}), ["the role '1'"]),
    "a key twice": ('{"prompt": "a", "prompt": "b", "teacher": "m"}', ["the key `prompt` twice"]),
    "a key twice inside": ('{"messages": [{"role": "user", "role": "user"}]}', ["the key `role` twice"]),
    "messages beside a prompt": ({**GOOD, "messages": [user()]}, ["`columns: {prompt: prompt}`"]),
    "two replies": ({**GOOD, "response": "a", "completion": "b"}, ["`columns: {response: response}`"]),
    "a reply at the end and beside": (
        {**chat(user(), {"role": "assistant", "content": "a"}), "response": "b"},
        ["two replies", "Leave one out"],
    ),
    "ShareGPT": (
        {"conversations": [{"from": "human", "value": "x"}], "teacher": "m"},
        ["ShareGPT", "`columns: {messages: conversations}`"],
    ),
    "another name of the prompt": ({"question": "x", "teacher": "m"}, ["`columns: {prompt: question}`"]),
    "a misspelled prompt": ({"promt": "x", "teacher": "m"}, ["`columns: {prompt: promt}`"]),
    "another name of the teacher": ({"prompt": "x", "domain": "m"}, ["`columns: {teacher: domain}`"]),
    "a prompt of null": ({"prompt": None, "teacher": "m"}, ["expected `prompt`"]),
    "a prompt that is a number": ({"prompt": 4.5, "teacher": "m"}, ["`prompt` as a text", "float 4.5"]),
    "a prompt that is a mapping": ({"prompt": {"a": 1}, "teacher": "m"}, ["`prompt` as a text", "dict"]),
    "an empty list of messages": ({"prompt": [], "teacher": "m"}, ["got an empty list"]),
    "a list of texts": ({"prompt": ["a"], "teacher": "m"}, ["`role` and `content`"]),
    "messages as text under prompt": (
        {"prompt": '[{"role": "user", "content": "x"}]', "teacher": "m"},
        ["`columns: {messages: prompt}`"],
    ),
    "messages as indented text under prompt": (
        {"prompt": '[\n  { "role": "user", "content": "x"}]', "teacher": "m"},
        ["`columns: {messages: prompt}`"],
    ),
    "ShareGPT as text under prompt": (
        {"prompt": '[{"from": "human", "value": "x"}]', "teacher": "m"},
        ["`columns: {messages: prompt}`"],
    ),
    "a key twice in messages as text": (
        {"messages": '[{"role": "user", "role": "system", "content": "x"}]', "teacher": "m"},
        ["keys repeat"],
    ),
    "messages as Python": ({"messages": "[{'role': 'user'}]", "teacher": "m"}, ["`json.dumps`"]),
    "messages as prose": ({"messages": "Hello", "teacher": "m"}, ["JSON", "'Hello'"]),
    "messages that are a mapping": ({"messages": user(), "teacher": "m"}, ["list of messages", "dict"]),
    "a system message alone": (
        chat({"role": "system", "content": "Be kind."}),
        ["a user's message in `messages`, got system only"],
    ),
    "a tool's answer alone": (chat({"role": "tool", "content": "4"}), ["a user's message", "got tool only"]),
    "a reply to the system": (
        chat({"role": "system", "content": "Be kind."}, {"role": "assistant", "content": "I am."}),
        ["a user's message", "got system, assistant only"],
    ),
    "the assistant first": (chat({"role": "assistant", "content": "Hi"}, user()), ["got the assistant first"]),
    "a message of null": (chat(user(), {"role": "user"}), ["`role` and `content`"]),
    "an answer of NaN": ('{"prompt": "x", "teacher": "m", "answer": NaN}', ["`answer`", "got nan"]),
    "an endless answer": ('{"prompt": "x", "teacher": "m", "answer": 1e999}', ["`answer`", "got inf"]),
    "an answer of NaN among others": ('{"prompt": "x", "teacher": "m", "answer": ["1", NaN]}', ["`answer`", "nan"]),
    "an answer that is a mapping": ({**GOOD, "answer": {"value": 2}}, ["`answer` as a text, a number or a list"]),
    "no answer in the list": ({**GOOD, "answer": []}, ["empty list"]),
    "a response that is a mapping": ({**GOOD, "response": {"text": "x"}}, ["`response` as a text"]),
    "a completion of two messages": ({**GOOD, "completion": [user(), user()]}, ["a list of 2", "`messages`"]),
    "a completion of the user": ({**GOOD, "completion": [user()]}, ["one message of the assistant"]),
    "a teacher that is a list": ({**GOOD, "teacher": ["m"] * 400}, ["teacher's name", "`teacher: …` for all rows"]),
    "an empty teacher": ({**GOOD, "teacher": ""}, ["teacher's name", "got ''"]),
}


@pytest.mark.parametrize(("row", "words"), ROWS.values(), ids=ROWS.keys())
def test_a_row_that_cannot_be_meant_is_named_with_its_cure(
    row: str | dict[str, Any], words: list[str], tmp_path: Path
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(f"{json.dumps(GOOD)}\n{row if isinstance(row, str) else json.dumps(row)}\n")
    text = refusal(path)
    assert text.startswith(f"{path}:2: ")
    for word in words:
        assert word in text


LIST = json.dumps([GOOD, GOOD], indent=1).encode()
LINE = json.dumps(GOOD).encode() + b"\n"
FILES: dict[str, tuple[str, bytes, list[str]]] = {
    "empty": ("rows.jsonl", b"", ["has no prompts"]),
    "an empty list": ("rows.json", b"[]", ["has no prompts"]),
    "empty and packed": ("rows.jsonl.gz", gzip.compress(b""), ["has no prompts"]),
    "an empty CSV file": ("rows.csv", b"", ["has no prompts"]),
    "a header alone": ("rows.csv", b"prompt,teacher\n", ["has no prompts"]),
    "UTF-16": ("rows.jsonl", LINE.decode().encode("utf-16"), ["UTF-16", "iconv"]),
    "UTF-16 without a mark": ("rows.csv", "prompt,teacher\nä,m\n".encode("utf-16-le"), ["UTF-16", "iconv"]),
    "Latin-1": ("rows.jsonl", LINE + b'{"prompt": "caf\xe9", "teacher": "m"}', ["rows.jsonl:2: ", "UTF-8"]),
    "Latin-1 in a list": ("rows.json", b'[\n{"prompt": "caf\xe9"}]', ["rows.json:2: ", "UTF-8", "0xe9", "iconv"]),
    "Latin-1 in CSV": ("rows.csv", b"prompt,teacher\nx,m\ncaf\xe9,m\n", ["rows.csv:3: ", "UTF-8", "0xe9", "iconv"]),
    "a list that is cut off": ("rows.json", LIST[:-2], ["rows.json:7: ", "the end of the file", "cut off"]),
    "a list cut off in a row": ("rows.json", LIST[:-9], ["rows.json:7: ", "a JSON object"]),
    "a list of numbers": ("rows.json", b"[1, 2]", ["rows.json:1: ", "got int"]),
    "a list with a comma too many": ("rows.json", b'[{"prompt": "a", "teacher": "m"},]', ["rows.json:1: ", "got ']'"]),
    "two lists": ("rows.json", LIST + LIST, ["nothing after the JSON list"]),
    "one object on several lines": ("rows.json", b'{\n"data": []\n}', ["rows.json:1: ", "as one list"]),
    "a pointer of LFS": ("rows.parquet", b"version https://git-lfs.github.com/spec/v1\noid", ["git lfs pull"]),
    "a gzip file that is cut off": ("rows.jsonl.gz", gzip.compress(LINE * 99)[:-9], ["cut off or damaged gzip"]),
    "a damaged gzip file": ("rows.gz", gzip.compress(LINE)[:-8] + b"\0" * 8, ["cut off or damaged gzip"]),
    "a damaged Parquet file": ("rows.parquet", b"PAR1" + b"\0" * 99, ["damaged Parquet file"]),
    "text with Parquet's ending": ("rows.parquet", LINE, ["no Parquet file"]),
    "a spreadsheet": ("rows.csv", b"PK\x03\x04...", ["as CSV"]),
    "a web page": ("rows.jsonl", b"<!DOCTYPE html><html>", ["HTML", "Download"]),
    "another compression": ("rows.jsonl.zst", b"\x28\xb5\x2f\xfd...", ["zstd -d"]),
    "CSV without a header": ("rows.csv", b"What is 2+2?,math\nx,math\n", ["rows.csv:1: ", "header", "columns"]),
    "CSV with other names": ("rows.csv", b"question,teacher\nx,math\n", ["['question', 'teacher']", "{prompt: "]),
    "a column twice": ("rows.csv", b"prompt,teacher,teacher\nx,m,m\n", ["`teacher` twice"]),
    "a cell too few": ("rows.csv", b"prompt,teacher\nx,m\nx\n", ["rows.csv:3: ", "expected 2 cells", "got 1"]),
    "a cell too many": ("rows.csv", b"prompt,teacher\na, b,m\n", ["rows.csv:2: ", "got 3", "quotes"]),
    "a quote without an end": ("rows.csv", b'prompt,teacher\n"x,m\n', ["rows.csv:2: ", "quotes"]),
    "an empty cell": ("rows.csv", b"prompt,teacher\nx,m\n,m\n", ["rows.csv:3: ", "`prompt`"]),
    "prose": ("rows.txt", b"What is 2 plus 2?\n", ["rows.txt:1: ", "one JSON object per line"]),
}


@pytest.mark.parametrize(("name", "content", "words"), FILES.values(), ids=FILES.keys())
def test_a_file_that_cannot_be_read_is_named_with_its_cure(
    name: str, content: bytes, words: list[str], tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    text = refusal(tmp_path / name)
    assert str(tmp_path / name) in text
    for word in words:
        assert word in text


FOLDERS: dict[str, tuple[list[str], list[str]]] = {
    "nothing": ([], ["has no data files", "Parquet"]),
    "no data": (["README.md", "config.json"], ["has no data files", "README.md"]),
    "two formats": (["a.jsonl", "a.csv"], ["several formats", "'.csv', '.jsonl'"]),
    "a split and a stray": (["train.jsonl", "more.jsonl"], ["more.jsonl", "Rename"]),
}


@pytest.mark.parametrize(("names", "words"), FOLDERS.values(), ids=FOLDERS.keys())
def test_a_folder_that_holds_no_data_set_is_named(names: list[str], words: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    for name in names:
        (folder / name).write_bytes(LINE)
    text = refusal(folder)
    assert str(folder) in text
    for word in words:
        assert word in text


def test_what_is_not_there_is_looked_for_nearby_and_never_on_the_hub_if_it_is_a_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress(LINE))
    text = refusal(tmp_path / "rows.jsonl")
    assert f"Did you mean `{tmp_path / 'rows.jsonl.gz'}`?" in text
    for path in ("", "rows", "data/rows.jsonl", "folder/rows", "./org/name", "org/name/more", "org/na me"):
        with pytest.raises(MissingFileError, match=r"`data\.task\.init_args\.validation_path`"):
            Jsonl("x", validation_path=path).prompts("validation")


def test_a_list_of_other_things_than_rows_is_refused() -> None:
    assert "has no prompts" in refusal([])
    strange = user([{"type": "text", "text": "a", "more": {1}}])
    assert "row 1: the messages hold what JSON cannot" in refusal([chat(strange)])
    assert "row 1: a column holds what cannot be copied" in refusal([{**GOOD, "check": lambda: 1}])
    with pytest.raises(ConfigError, match=r"row 2: expected a mapping .* got str.*to_dict"):
        list(list_source([GOOD, "prompt"]).read(frozenset()))
