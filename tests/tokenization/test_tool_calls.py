from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_opd.tokenization.tool_calls import (
    BareJson,
    TaggedJson,
    ToolCall,
    call_bodies,
    only_call,
    parse_tool_call,
    render_tool_call,
)

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.text(), st.dictionaries(st.text(), values, max_size=4))
def test_every_call_written_as_json_is_read_back(name: str, arguments: dict[str, object]) -> None:
    body = json.dumps({"name": name, "arguments": arguments})
    assert parse_tool_call(body) == parse_tool_call(f"\n{body}\n") == ToolCall(name, arguments)


def test_a_call_without_arguments_may_leave_them_out() -> None:
    assert parse_tool_call('{"name": "now"}') == ToolCall("now", {})


@pytest.mark.parametrize(
    "body",
    [
        "",
        "{",
        "null",
        '"calc"',
        '["calc", {}]',
        "{}",
        '{"arguments": {}}',
        '{"name": 1, "arguments": {}}',
        '{"name": "calc", "arguments": "85"}',
        '{"name": "calc", "arguments": [85]}',
        '{"name": "calc", "arguments": null}',
        '{"name": "calc", "arguments": {}',
        '{"name": "calc", "arguments": {}}}',
        '{"name": "calc", "arguments": {}} {"name": "calc"}',
        "{'name': 'calc', 'arguments': {}}",
        '{"name": "calc", "arguments": {"x": NaN}}',
        '{"name": "calc", "arguments": {"x": 1, "x": 2}}',
        '{"name": "other", "name": "calc"}',
        '{"name": "calc", "arguments": {"x": __import__("os")}}',
        "[" * 100_000,
        '{"name": "calc", "arguments": {"x": 1e999}}',
        '{"name": "calc", "arguments": {"x": ' + "[" * 100 + "]" * 100 + "}}",
        '{"name": "calc", "arguments": {"x": ' + "9" * 10_000 + "}}",
    ],
    ids=lambda body: body[:40],
)
def test_anything_else_is_no_call(body: str) -> None:
    assert parse_tool_call(body) is None


@given(st.text())
def test_no_text_breaks_the_parser(text: str) -> None:
    parse_tool_call(text)
    only_call(f"<tool_call>{text}</tool_call>")


def test_the_only_call_must_be_the_only_one() -> None:
    call = '<tool_call>{"name": "calc"}</tool_call>'
    assert only_call(f"Let me see. {call} Done.") == ToolCall("calc", {})
    assert only_call(call * 2) is None
    assert only_call(f"{call}<tool_call>") is None
    assert only_call(f"</tool_call>{call}") is None
    assert only_call(f"<tool_call>{call}</tool_call>") is None
    assert only_call(call.replace("</tool_call>", "")) is None
    assert only_call("") is None


def test_bodies_may_span_lines_and_do_not_overlap() -> None:
    assert call_bodies("<tool_call>\na\n</tool_call> <tool_call>b</tool_call>") == ["\na\n", "b"]


BARE, TAGGED, LENIENT = BareJson(), TaggedJson(), TaggedJson(is_lenient=True)


def test_an_open_call_counts_only_in_a_lenient_harness() -> None:
    closed, left_open = '<tool_call>{"name": "a"}</tool_call>', '<tool_call>{"name": "b"}'
    assert TAGGED(closed + left_open) == [ToolCall("a", {})]
    assert LENIENT(closed + left_open) == [ToolCall("a", {}), ToolCall("b", {})]
    assert TAGGED(closed + "<tool_call>{</tool_call>") == LENIENT(closed + "<tool_call>{") == [ToolCall("a", {}), None]
    assert TAGGED("no call") == LENIENT("no call") == []
    assert TaggedJson("[[", "]]")('[[{"name": "a"}]]') == [ToolCall("a", {})]


def test_bare_json_is_a_call_only_if_it_is_the_whole_reply() -> None:
    call = '{"name": "calc", "parameters": {"x": 1}}'
    assert BARE(call) == BARE(f" <|python_tag|>{call}\n") == [ToolCall("calc", {"x": 1})]
    assert BARE(f"{call}; {call}") == [ToolCall("calc", {"x": 1})] * 2
    assert BARE(f"Let me see: {call}") == BARE("") == BARE("85") == []
    assert BARE(f"{call} Done.") == [ToolCall("calc", {"x": 1}), None]
    assert BARE('{"name": "a", "name": "b"}') == BARE('{"name": "a", "parameters": {') == [None]


@given(st.dictionaries(st.text(), values, max_size=4), st.text())
def test_a_rendered_call_is_read_back(arguments: dict[str, object], name: str) -> None:
    assert TAGGED(render_tool_call("calc", arguments)) == [ToolCall("calc", arguments)] or any(
        tag in json.dumps(arguments, ensure_ascii=False) for tag in ("<tool_call>", "</tool_call>")
    )
    assert BARE(json.dumps({"name": name, "parameters": arguments})) == [ToolCall(name, arguments)]


@given(st.lists(st.sampled_from(["<tool_call>", "</tool_call>", "{", "}", '"name"', ":", '"a"', ";", "x"])))
def test_no_text_breaks_a_parser(pieces: list[str]) -> None:
    for parser in (BARE, TAGGED, LENIENT):
        assert all(call is None or isinstance(call, ToolCall) for call in parser("".join(pieces)))
    assert len(TAGGED("".join(pieces))) <= len(LENIENT("".join(pieces))) <= len(TAGGED("".join(pieces))) + 1
