"""Columns by other names, and what a row may hold under them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from lightning_opd.errors import ConfigError
from lightning_opd.tasks import ExactAnswer, Jsonl
from lightning_opd.types import Prompt, Trajectory

CHAT = [{"role": "user", "content": "Hi"}]
REPLY = {"role": "assistant", "content": "Hello"}


def only(row: dict[str, Any], **settings: Any) -> Prompt:
    [prompt] = Jsonl([row], **settings).prompts("train")
    return prompt


def test_columns_get_the_names_that_this_package_knows() -> None:
    row = {"question": "4 + 3?", "gold": 7, "subject": "math", "level": 2, "good": "It is 7."}
    names = {"prompt": "question", "answer": "gold", "teacher": "subject", "domain": "level", "response": "good"}
    task = Jsonl([row], columns=names, match="numeric")
    [prompt] = task.prompts("train")
    assert prompt.messages == ({"role": "user", "content": "4 + 3?"},)
    assert (prompt.teacher, prompt.domain) == ("math", "2")
    rest = {key: value for key, value in row.items() if key != "question"}
    assert prompt.columns == {**rest, "answer": 7, "response": "It is 7."}
    assert task.reward(prompt, "7") == 1
    assert task.demonstration(prompt) == "It is 7."


def test_a_mapped_column_counts_in_place_of_one_of_the_known_name() -> None:
    row = {"prompt": "p", "messages": CHAT, "teacher": "a", "answer": "long", "final": None}
    prompt = only(row, columns={"messages": "messages", "answer": "final"}, teacher="b")
    assert prompt.messages == tuple(CHAT)
    assert prompt.teacher == "b", "a teacher of all rows is that of rows that name another, too"
    assert "answer" not in prompt.columns


def test_a_prompt_may_be_a_list_of_messages_and_a_completion_one_message() -> None:
    text = only({"prompt": "Hi", "completion": "Hello"}, teacher="a")
    for row in (
        {"prompt": CHAT, "completion": [REPLY]},
        {"prompt": CHAT, "response": "Hello"},
        {"messages": [*CHAT, REPLY]},
        {"messages": json.dumps([*CHAT, REPLY])},
        {"messages": CHAT, "response": "Hello"},
        {"messages": [*CHAT, REPLY], "response": "Hello"},
        {"messages": [*CHAT, {**REPLY, "content": [{"type": "text", "text": "Hello"}]}]},
    ):
        prompt = only(row, teacher="a")
        assert (prompt.messages, prompt.key) == (tuple(CHAT), text.key)
        assert prompt.columns["response"] == text.columns["response"] == "Hello"


def test_a_completion_may_call_tools() -> None:
    reply = {"role": "assistant", "tool_calls": [{"name": "now", "arguments": "{}"}]}
    at_the_end = only({"messages": [*CHAT, reply]}, teacher="a")
    apart = only({"messages": CHAT, "completion": [reply]}, teacher="a")
    assert apart.columns["tool_calls"] == at_the_end.columns["tool_calls"]


def test_each_of_a_list_of_answers_is_right() -> None:
    task = Jsonl([{"prompt": "2 + 2?", "teacher": "a", "answer": ["4", "four"]}])
    [prompt] = task.prompts("train")
    assert [task.reward(prompt, text) for text in ("4", "four", "five", "['4', 'four']")] == [1, 1, 0, 0]
    trajectory = Trajectory(prompt, (), (), (), "four", is_truncated=False)
    assert ExactAnswer()(trajectory) == 1


def test_a_system_prompt_is_that_of_all_rows_without_one_and_leaves_the_question_the_same() -> None:
    own = {"role": "system", "content": "Mine."}
    schema = {"name": "now", "description": "", "parameters": {}}
    rows: list[dict[str, Any]] = [
        {"prompt": "Hi", "tools": [schema], "chat_template_kwargs": '{"enable_thinking": false}'},
        {"messages": [own, *CHAT]},
    ]
    bare, _ = Jsonl(rows, teacher="a").prompts("train")
    first, second = Jsonl(rows, teacher="a", system_prompt="Be kind.").prompts("train")
    assert [m["role"] for m in first.messages] == ["system", "user"]
    assert first.messages[0]["content"] == "Be kind."
    assert first.messages[0]["tools"] == bare.messages[0]["tools"]
    assert first.messages[0]["chat_template_kwargs"] == {"enable_thinking": False}
    assert first.messages[1] == {"role": "user", "content": "Hi"}
    assert first.key == bare.key
    assert list(second.messages) == [own, *CHAT]


def test_a_column_of_system_prompts_is_read_where_it_is_mapped() -> None:
    row = {"prompt": "Hi", "system": "Be brief."}
    assert len(only(row, teacher="a").messages) == 1
    assert only(row, teacher="a", columns={"system": "system"}).messages[0] == {
        "role": "system",
        "content": "Be brief.",
    }


def test_sharegpt_rows_are_converted_where_they_are_mapped(capsys: pytest.CaptureFixture[str]) -> None:
    turns = [("system", "Be kind."), ("human", "Hi"), ("gpt", "Hello")]
    row = {"conversations": [{"from": who, "value": text} for who, text in turns]}
    prompt = only(row, teacher="a", columns={"messages": "conversations"})
    assert [m["role"] for m in prompt.messages] == ["system", "user"]
    assert prompt.columns == {"response": "Hello"}
    with pytest.raises(ConfigError, match=r"row 1: .*ShareGPT.*`columns: \{messages: conversations\}`"):
        only(row, teacher="a")


@pytest.mark.parametrize(
    ("columns", "settings", "said"),
    [
        ({"promt": "question"}, {}, "Did you mean `prompt`"),
        ({"question": "prompt"}, {}, "Write it as `prompt: question`"),
        ({"prompt": ""}, {}, "expected the name of a column"),
        ({"prompt": "a", "messages": "b"}, {}, "`prompt` and `messages`; a row has one of them"),
        ({"teacher": "a"}, {"teacher": "math"}, "Leave one of them out"),
    ],
)
def test_columns_that_cannot_be_meant_are_refused_before_any_file_is_read(
    columns: dict[str, str], settings: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        Jsonl("no such file", columns=columns, **settings)


def test_a_mapped_column_that_no_row_has_is_refused_and_one_that_some_lack_is_not() -> None:
    rows = [{"prompt": "a", "gold": "1"}, {"prompt": "b"}]
    assert len(Jsonl(rows, teacher="a", columns={"answer": "gold"}).prompts("train")) == 2
    with pytest.raises(ConfigError, match=r"No row of the list of rows has the column `golden`.*Did you mean `gold`"):
        Jsonl(rows[:1], teacher="a", columns={"answer": "golden"}).prompts("train")
    with pytest.raises(ConfigError, match=r"`questions` \(`columns` maps `prompt` to it\).*Did you mean `question`"):
        Jsonl([{"question": "a"}], teacher="a", columns={"prompt": "questions"}).prompts("train")
