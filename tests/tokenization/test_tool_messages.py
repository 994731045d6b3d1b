from __future__ import annotations

import json
from typing import Any

import pytest

from lightning_opd.errors import ConfigError
from lightning_opd.tokenization.tool_messages import with_tool_calls, with_tools

USER = {"role": "user", "content": "Where?"}


def asked(call: Any, *answers: dict[str, Any], content: str | None = None) -> tuple[Any, ...]:
    return with_tool_calls([USER, {"role": "assistant", "content": content, "tool_calls": call}, *answers])


def test_a_chat_without_calls_stays_as_it_is() -> None:
    chat = ({"role": "system", "content": "x"}, USER, {"role": "tool", "content": "as text"})
    assert with_tool_calls(chat) == chat
    assert with_tools(chat, None) == with_tools(chat, []) == with_tools(chat, "") == chat


@pytest.mark.parametrize("arguments", [{"city": "Oslo"}, '{"city": "Oslo"}'])
def test_arguments_are_mappings_and_ids_suit_every_template(arguments: Any) -> None:
    call = {"id": "call_0123456789abcdef", "function": {"name": "look_up", "arguments": arguments}}
    answer = {"role": "tool", "tool_call_id": "call_0123456789abcdef", "content": "1"}
    function = {"name": "look_up", "arguments": {"city": "Oslo"}}
    assert asked([call], answer) == (
        USER,
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"id": "call00000", "type": "function", "function": function}],
        },
        {"role": "tool", "tool_call_id": "call00000", "name": "look_up", "content": "1"},
    )
    assert asked(json.dumps([call]), answer) == asked([call], answer)
    _, kept, _ = asked([{**call, "id": "abcdEFG12"}], {**answer, "tool_call_id": "abcdEFG12"}, content="Well.")
    assert (kept["tool_calls"][0]["id"], kept["content"]) == ("abcdEFG12", "Well.")


def test_answers_without_ids_belong_to_the_calls_in_order() -> None:
    calls = [{"name": name} for name in ("a", "b")]
    answers = [{"role": "tool", "content": str(i)} for i in range(2)]
    _, _, *given = asked(calls, *answers)
    assert [(m["tool_call_id"], m["name"]) for m in given] == [("call00000", "a"), ("call00001", "b")]
    with pytest.raises(ConfigError, match="which nobody made"):
        asked(calls, *answers, {"role": "tool", "content": "2"})


def test_a_new_id_is_none_that_another_call_has() -> None:
    _, made, *given = asked(
        [{"name": "a"}, {"name": "b", "id": "call00000"}],
        {"role": "tool", "tool_call_id": "call00000", "content": "of b"},
    )
    assert [call["id"] for call in made["tool_calls"]] == ["call00001", "call00000"]
    assert given[0]["name"] == "b"


def test_an_empty_list_of_calls_is_none() -> None:
    assert asked([], content="So.")[1] == asked(None, content="So.")[1] == {"role": "assistant", "content": "So."}


@pytest.mark.parametrize(
    ("calls", "said"),
    [
        ("look_up", "expected `tool_calls` as a list"),
        ({"name": "look_up"}, "expected `tool_calls` as a list"),
        (["look_up"], "expected a tool call as"),
        ([{"function": "look_up"}], "expected a tool call as"),
        ([{"name": "look_up", "arguments": "Oslo"}], "`arguments` of `look_up` as a mapping"),
        ([{"name": "look_up", "arguments": [1]}], "`arguments` of `look_up` as a mapping"),
        ([{"name": "look_up", "arguments": '"{\\"city\\": 1}"'}], "`arguments` of `look_up` as a mapping"),
    ],
)
def test_calls_that_cannot_be_read_are_refused(calls: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        asked(calls)


def test_an_answer_to_no_call_is_refused() -> None:
    with pytest.raises(ConfigError, match="answers the call 'other', which nobody made"):
        asked([{"id": "one", "name": "a"}], {"role": "tool", "tool_call_id": "other", "content": "1"})


def test_a_rows_tools_stand_in_its_first_message() -> None:
    function = {"name": "look_up", "parameters": {}}
    whole = {"type": "function", "function": function}
    expected = ({**USER, "tools": [whole]}, USER)
    assert with_tools((USER, USER), [function]) == with_tools((USER, USER), [whole]) == expected
    assert with_tools((USER, USER), json.dumps([whole])) == expected
    for wrong in (["look_up"], [{"type": "function"}], "look_up", {"name": "look_up"}):
        with pytest.raises(ConfigError, match="expected `tools` as a list"):
            with_tools((USER,), wrong)
