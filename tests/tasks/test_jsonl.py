from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lightning_opd.interfaces import Split
from lightning_opd.tasks import ChoiceAnswer, Jsonl, Mixture
from lightning_opd.tokenization.rendering import render
from lightning_opd.tokenization.training import train_tokenizer
from lightning_opd.types import Prompt
from tests.tokenization.test_replies import tokenizer_with

Write = Callable[..., str]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(*lines: object, name: str = "rows.jsonl") -> str:
        path = tmp_path / name
        path.write_text("".join(f"{x if isinstance(x, str) else json.dumps(x)}\n" for x in lines), encoding="utf-8")
        return str(path)

    return write


def row(i: int = 0, **columns: object) -> dict[str, Any]:
    return {"prompt": f"Question {i}?", "teacher": "math", **columns}


def all_prompts(task: Jsonl) -> list[Prompt]:
    return [prompt for split in ("train", "validation", "test") for prompt in task.prompts(split)]


def test_a_prompt_becomes_a_user_message_and_other_columns_travel(write: Write) -> None:
    (prompt,) = all_prompts(Jsonl(write(row(answer="4", source="book"))))
    assert prompt.messages == ({"role": "user", "content": "Question 0?"},)
    assert (prompt.teacher, prompt.domain) == ("math", "math")
    assert prompt.columns == {"teacher": "math", "answer": "4", "source": "book"}


def test_messages_are_kept_and_a_last_answer_becomes_the_demonstration(write: Write) -> None:
    chat = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}]
    reply = {"role": "assistant", "content": "Hello"}
    task = Jsonl(write({"messages": [*chat, reply], "teacher": "a"}))
    (prompt,) = all_prompts(task)
    assert list(prompt.messages) == chat
    splits: tuple[Split, ...] = ("train", "validation", "test")
    split = next(s for s in splits if task.prompts(s))
    assert [list(messages) for messages in task.demonstrations(split, 2, seed=0)] == [[*chat, reply]] * 2


@pytest.mark.parametrize("last", ["system", "developer", "tool"])
def test_what_comes_after_the_users_message_is_left_to_the_chat_template(last: str, write: Write) -> None:
    chat = [{"role": "user", "content": "Hi"}, {"role": last, "content": "Be brief."}]
    (prompt,) = all_prompts(Jsonl(write({"messages": chat, "teacher": "a"})))
    assert list(prompt.messages) == chat


def test_teacher_and_domain_come_from_named_columns(write: Write) -> None:
    path = write({"prompt": "x", "expert": "e", "topic": 3})
    (prompt,) = all_prompts(Jsonl(path, columns={"teacher": "expert", "domain": "topic"}))
    assert (prompt.teacher, prompt.domain) == ("e", "3")


def test_questions_are_split_by_hash_where_that_is_asked_for(write: Write) -> None:
    task = Jsonl(write(*(row(i % 300) for i in range(600))), split="hash")
    keys = [{p.key for p in task.prompts(split)} for split in ("train", "validation", "test")]
    assert sum(map(len, keys)) == len(set().union(*keys)) == 300
    assert sum(len(task.prompts(split)) for split in ("train", "validation", "test")) == 600


def test_split_files_are_taken_whole_and_in_order(write: Write) -> None:
    train, test = write(*(row(i) for i in range(9)), name="a"), write(row(20), row(10), name="b")
    task = Jsonl(train, test_path=test)
    assert [p.messages[0]["content"] for p in task.prompts("train")] == [f"Question {i}?" for i in range(9)]
    assert [p.messages[0]["content"] for p in task.prompts("test")] == ["Question 20?", "Question 10?"]
    assert task.prompts("validation") == []


BAD_LINES = {
    "no JSON": ("{prompt: 1", "one JSON object per line"),
    "cut off": ('{"prompt": "x", "teacher": ', "one JSON object per line"),
    "a list": ([1, 2], "a JSON object, got list"),
    "no prompt": ({"question": "x", "teacher": "math"}, r"`prompt` .* or `messages` .*\['question', 'teacher'\]"),
    "a prompt that is a number": ({"prompt": 3, "teacher": "math"}, "`prompt`"),
    "no messages": ({"messages": [], "teacher": "math"}, "`messages`"),
    "a message without a role": ({"messages": [{"content": "x"}], "teacher": "math"}, "`role` and `content`"),
    "a message that is a text": ({"messages": ["x"], "teacher": "math"}, "`role` and `content`"),
    "only an answer": ({"messages": [{"role": "assistant", "content": "x"}], "teacher": "m"}, "assistant first"),
    "no teacher": (
        {"prompt": "x", "tutor": "a"},
        r"`teacher`, got .*\['prompt', 'tutor'\].*`columns: {teacher: …}`",
    ),
    "a teacher that is a number": ({"prompt": "x", "teacher": 7}, "`teacher`, or teachers with their weights, got '7'"),
    "a deep nest": ("[" * 100_000, "one JSON object per line"),
}


@pytest.mark.parametrize(("line", "message"), BAD_LINES.values(), ids=BAD_LINES.keys())
def test_a_malformed_line_is_named_by_file_and_number(line: object, message: str, write: Write) -> None:
    path = write(row(1), "", line, row(2))
    with pytest.raises(ValueError, match=rf"rows\.jsonl:3: .*{message}") as caught:
        Jsonl(path).prompts("train")
    assert len(str(caught.value)) < 400


def test_another_encoding_is_named_by_its_line(tmp_path: Path) -> None:
    path = tmp_path / "latin.jsonl"
    path.write_bytes(b'{"prompt": "a", "teacher": "m"}\n{"prompt": "caf\xe9", "teacher": "m"}\n')
    with pytest.raises(ValueError, match=r"latin\.jsonl:2: .*UTF-8"):
        Jsonl(str(path)).prompts("train")


def test_a_byte_order_mark_and_windows_line_ends_are_skipped(tmp_path: Path) -> None:
    path = tmp_path / "rollout batches.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"prompt": "a", "teacher": "m"}\r\n\r\n{"prompt": "b", "teacher": "m"}\r\n')
    assert {p.messages[0]["content"] for p in all_prompts(Jsonl(str(path)))} == {"a", "b"}


@pytest.mark.parametrize("lines", [(), ("", "  ")])
def test_an_empty_file_is_an_error(lines: tuple[str, ...], write: Write) -> None:
    with pytest.raises(ValueError, match="has no prompts"):
        Jsonl(write(*lines)).prompts("train")


def test_a_missing_file_is_an_error_that_names_the_setting(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"gone\.jsonl`, found none"):
        Jsonl(str(tmp_path / "gone.jsonl")).prompts("train")


def test_a_missing_domain_column_is_an_error(write: Write) -> None:
    with pytest.raises(ValueError, match=r"rows\.jsonl:1: expected `topic`"):
        Jsonl(write(row()), columns={"domain": "topic"}).prompts("train")


def test_a_row_without_answer_has_no_reward(write: Write) -> None:
    task = Jsonl(write(row()), match="numeric")
    (prompt,) = all_prompts(task)
    assert task.reward(prompt, "") == task.reward(prompt, "None") == 0


def test_exact_match_compares_stripped_texts(write: Write) -> None:
    task = Jsonl(write(row(answer=" yes ")))
    (prompt,) = all_prompts(task)
    assert [task.reward(prompt, text) for text in ("yes", "\n yes", "Yes", "yes!", "")] == [1, 1, 0, 0, 0]


def test_numeric_match_compares_the_last_number(write: Write) -> None:
    task = Jsonl(write(row(answer=1200.5)), match="numeric")
    (prompt,) = all_prompts(task)
    right = ["1200.5", "It is 1,200.50.", "3 + 4 = 1200.500", "**1200.5**", "$1,200.5!", "1.2005e3", "2401/2"]
    wrong = ["", "none", "1200.5 or 7", "1200", "-1200.5", "1200.51", "1.2005e2"]
    assert [task.reward(prompt, text) for text in right] == [1] * len(right)
    assert [task.reward(prompt, text) for text in wrong] == [0] * len(wrong)


def test_any_comparison_of_answers_can_be_chosen(write: Write) -> None:
    task = Jsonl(write(row(answer="B")), match=ChoiceAnswer("ABCD"))
    (prompt,) = all_prompts(task)
    assert [task.reward(prompt, text) for text in ("The answer is B.", "A")] == [1, 0]
    with pytest.raises(ValueError, match=r"rows\.jsonl:1: expected one letter of ABCD in `answer`, got 'maybe'"):
        Jsonl(write(row(answer="maybe")), match=ChoiceAnswer("ABCD")).prompts("train")


def test_an_answer_that_is_no_number_cannot_be_matched_as_one(write: Write) -> None:
    path = write(row(answer="many"))
    with pytest.raises(ValueError, match=r"rows\.jsonl:1: expected a number in `answer`, got 'many'.*exact"):
        Jsonl(path, match="numeric").prompts("train")


def test_a_file_without_responses_cannot_demonstrate(write: Write) -> None:
    task = Jsonl(write(*(row(i) for i in range(30))))
    with pytest.raises(ValueError, match="`response`"):
        task.demonstrations("train", 3, seed=0)


def test_a_rows_tools_and_calls_reach_the_chat_template(write: Write) -> None:
    schema = {"type": "function", "function": {"name": "look_up", "description": "Look it up.", "parameters": {}}}
    call = {"id": "call_0123456789", "type": "function", "function": {"name": "look_up", "arguments": '{"x": 1}'}}
    chat = [
        {"role": "user", "content": "Where?"},
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_0123456789", "content": "Here."},
    ]
    path = write({"messages": chat, "tools": [schema], "teacher": "math"})
    [prompt] = all_prompts(Jsonl(path))
    tokenizer = tokenizer_with("{{ c.function.arguments|tojson }} {{ c.id }}")
    text = render(tokenizer, prompt.messages, add_generation_prompt=True)
    assert '{"x": 1} call00000' in text
    assert prompt.messages[0]["tools"] == [schema]
    shown = render(train_tokenizer(["a"], vocab_size=260), prompt.messages, add_generation_prompt=True)
    assert "Look it up." in shown
    [bare] = all_prompts(Jsonl(write({"messages": chat, "teacher": "math"})))
    assert bare.key != prompt.key, "with other tools it is another question"


def test_calls_at_the_end_of_a_row_are_its_demonstration(write: Write) -> None:
    call = {"name": "look_up", "arguments": {"x": 1}}
    chat = [{"role": "user", "content": "Where?"}, {"role": "assistant", "content": None, "tool_calls": [call]}]
    task = Jsonl("", validation_path=write({"messages": chat, "teacher": "math"}))
    [[_, reply]] = task.demonstrations("validation", 1, 0)
    function = {"name": "look_up", "arguments": {"x": 1}}
    assert reply == {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"id": "call00000", "type": "function", "function": function}],
    }
    [prompt] = task.prompts("validation")
    assert task.demonstration(prompt) is None, "its text is each template's own"
    mixture = Mixture({"math": task})
    [mixed] = mixture.prompts("validation")
    assert task.demonstration_message(prompt) == mixture.demonstration_message(mixed) == reply


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"tools": ["look_up"]}, "expected `tools` as a list"),
        ({"messages": [{"role": "user", "content": 7}]}, "`content` must be a text"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "only text parts"),
        (
            {"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "tool_calls": ["x"]}]},
            "a tool call as",
        ),
    ],
)
def test_what_no_template_can_show_is_named_by_file_and_number(
    columns: dict[str, Any], said: str, write: Write
) -> None:
    wrong = {key: value for key, value in row(1, **columns).items() if key != "prompt" or "messages" not in columns}
    with pytest.raises(ValueError, match=f"rows.jsonl:2: .*{said}"):
        Jsonl(write(row(0), wrong)).prompts("train")


def test_a_rows_template_settings_reach_the_template(write: Write) -> None:
    line = {"prompt": "Hi", "teacher": "math", "chat_template_kwargs": {"enable_thinking": False}}
    [prompt] = [p for split in ("train", "validation", "test") for p in Jsonl(write(line)).prompts(split)]
    assert prompt.messages[0]["chat_template_kwargs"] == {"enable_thinking": False}
    with pytest.raises(ValueError, match=r"expected `chat_template_kwargs` as a mapping.*got 'off'"):
        Jsonl(write({**line, "chat_template_kwargs": "off"})).prompts("train")
