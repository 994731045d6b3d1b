from __future__ import annotations

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_opd.tokenization.replies import FORMS, PROBE
from lightning_opd.tokenization.tool_call_forms import (
    FencedJson,
    MistralCalls,
    PythonicCalls,
    XmlArguments,
    XmlParameters,
)
from lightning_opd.tokenization.tool_calls import BareJson, TaggedJson, ToolCall, ToolCallParser
from lightning_opd.tokenization.tool_schema import function_schema, typed_arguments

QWEN = (
    "<tool_call>\n<function=look_up>\n<parameter=city>\nOslo\n</parameter>\n"
    "<parameter=days>\n3\n</parameter>\n</function>\n</tool_call>"
)
GLM = (
    "<tool_call>look_up\n<arg_key>city</arg_key>\n<arg_value>Oslo</arg_value>\n"
    "<arg_key>days</arg_key>\n<arg_value>3</arg_value>\n</tool_call>"
)
MISTRAL = '[TOOL_CALLS][{"name": "look_up", "arguments": {"city": "Oslo", "days": 3}, "id": "call00000"}]'
TEKKEN = '[TOOL_CALLS]look_up[ARGS]{"city": "Oslo", "days": 3}'
HEAD, SEPARATOR, TAIL = FencedJson().open_tag, FencedJson().separator, FencedJson().close_tag
DEEPSEEK = f'{HEAD}function{SEPARATOR}look_up\n```json\n{{"city": "Oslo", "days": 3}}\n```{TAIL}'
DEEPSEEK_NEW = f'{HEAD}look_up{SEPARATOR}{{"city": "Oslo", "days": 3}}{TAIL}'
PYTHON = 'look_up(city="Oslo", days=3)'


def look_up(city: str, days: int, *, is_exact: bool = False, tags: list[str] | None = None) -> str:
    """Look the weather up.

    Args:
        city: Where.
        days: How many.
        is_exact: Whether to tell all.
        tags: More words.
    """
    return f"{city} {days} {is_exact} {tags}"


SCHEMA = function_schema(look_up)


def read(parser: ToolCallParser, text: str) -> list[tuple[str, dict[str, object]] | None]:
    return [None if call is None else (call.name, typed_arguments(SCHEMA, call)) for call in parser(text)]


@pytest.mark.parametrize(
    ("parser", "text"),
    [
        (XmlParameters(), QWEN),
        (XmlArguments(), GLM),
        (MistralCalls(), MISTRAL),
        (MistralCalls(), MISTRAL.replace("[{", " [ {")),
        (MistralCalls(), TEKKEN),
        (MistralCalls(), TEKKEN.replace("[ARGS]", "[CALL_ID]abcdefghi[ARGS]")),
        (FencedJson(), DEEPSEEK),
        (FencedJson(), DEEPSEEK_NEW),
        (PythonicCalls(), f"[{PYTHON}]"),
        (PythonicCalls(), f"<|tool_call_start|>[{PYTHON}]<|tool_call_end|>"),
        (PythonicCalls(), f"<|python_start|>{PYTHON}<|python_end|>"),
    ],
)
def test_a_call_is_read_in_each_familys_form(parser: ToolCallParser, text: str) -> None:
    assert read(parser, text) == [(PROBE.name, PROBE.arguments)]
    if not isinstance(parser, PythonicCalls) or "<|" in text:
        assert parser.content(f"Let me see. {text}") == "Let me see."
    assert parser("It is noon.") == []


def test_several_calls_keep_their_order() -> None:
    both = [(PROBE.name, PROBE.arguments), ("now", {})]
    assert read(XmlParameters(), QWEN + "\n<tool_call><function=now></function></tool_call>") == both
    assert read(XmlArguments(), GLM + "<tool_call>now\n</tool_call>") == both
    assert read(MistralCalls(), MISTRAL[:-1] + ', {"name": "now", "arguments": {}}]') == both
    assert read(MistralCalls(), TEKKEN + "[TOOL_CALLS]now[ARGS]{}") == both
    assert read(PythonicCalls(), f"[{PYTHON}, now()]") == both


NOW = f"{HEAD}now{SEPARATOR}{{}}{TAIL}"
JSON = json.dumps({"name": PROBE.name, "arguments": dict(PROBE.arguments)})


@pytest.mark.parametrize(
    ("parser", "blocks"),
    [
        (TaggedJson(), (f"<tool_call>{JSON}</tool_call>", '<tool_call>{"name": "now"}</tool_call>')),
        (XmlParameters(), (QWEN, "<tool_call><function=now></function></tool_call>")),
        (XmlArguments(), (GLM, "<tool_call>now</tool_call>")),
        (FencedJson(), (DEEPSEEK, NOW)),
        (FencedJson(), tuple(block.join(FencedJson().around) for block in (DEEPSEEK, NOW))),
        (
            PythonicCalls(),
            (f"<|tool_call_start|>[{PYTHON}]<|tool_call_end|>", "<|tool_call_start|>[now()]<|tool_call_end|>"),
        ),
        (PythonicCalls(), (f"<|python_start|>{PYTHON}<|python_end|>", "<|python_start|>now()<|python_end|>")),
        (PythonicCalls(), (f"<|python_start|>{PYTHON}<|python_end|>", "<|tool_call_start|>[now()]<|tool_call_end|>")),
    ],
)
def test_every_block_of_calls_is_read(parser: ToolCallParser, blocks: tuple[str, str]) -> None:
    both = [(PROBE.name, PROBE.arguments), ("now", {})]
    text = f"Let me see.{blocks[0]} And now:{blocks[1]}"
    assert read(parser, text) == both
    assert parser.content(text) == "Let me see. And now:"
    assert read(parser, blocks[1] + "?" + blocks[0]) == both[::-1]


@pytest.mark.parametrize("between", ["", "\n", "; ", "\n\n"])
def test_a_prefix_may_stand_before_each_bare_call(between: str) -> None:
    text = f'<|python_tag|>{JSON}{between}<|python_tag|> {{"name": "now", "parameters": {{}}}}'
    assert read(BareJson(), text) == [(PROBE.name, PROBE.arguments), ("now", {})]


def test_pythonic_calls_need_no_tags_at_all() -> None:
    assert read(PythonicCalls(()), f"[{PYTHON}]") == [(PROBE.name, PROBE.arguments)]
    assert read(PythonicCalls(), "<|python_start|>now()") == [("now", {})], "the last block may be left open"
    assert PythonicCalls(())("<|python_start|>now()<|python_end|>") == []


@pytest.mark.parametrize("second", ["what?", "[now(1)]", "[now()][now()]"], ids=["words", "no name", "two lists"])
def test_a_second_block_that_cannot_be_read_is_told(second: str) -> None:
    text = f"<|tool_call_start|>[{PYTHON}]<|tool_call_end|><|tool_call_start|>{second}<|tool_call_end|>"
    assert read(PythonicCalls(), text) == [(PROBE.name, PROBE.arguments), None]


@pytest.mark.parametrize(
    ("parser", "text"),
    [
        (TaggedJson(), '<tool_call>{"name": "look_up", "args": {"city": "Oslo"}}</tool_call>'),
        (TaggedJson(), '<tool_call>{"name": "look_up", "arguments": "Oslo"}</tool_call>'),
        (TaggedJson(), '<tool_call>{"name": "look_up", "arguments": {}, "parameters": {"city": "x"}}</tool_call>'),
        (BareJson(), '{"name": "look_up", "parameters": ["Oslo"]}'),
        (BareJson(), '{"type": "function", "function": {"name": "look_up"}, "arguments": {"city": "Oslo"}}'),
        (TaggedJson(), '<tool_call>{"function": {"name": "look_up"}, "parameters": {"city": "Oslo"}}</tool_call>'),
        (BareJson(), "<|python_tag|>print(1)"),
        (XmlParameters(), QWEN.replace("</parameter>", "", 1)),
        (XmlParameters(), QWEN.replace("<function=", "<call=")),
        (XmlParameters(), QWEN.replace("=days", "=city")),
        (XmlParameters(), QWEN.replace("</parameter>\n<", "</parameter>\nand <")),
        (XmlArguments(), GLM.replace("</arg_value>", "", 1)),
        (XmlArguments(), GLM.replace("days", "city")),
        (XmlArguments(), '<tool_call>{"name": "look_up"}</tool_call>'),
        (MistralCalls(), MISTRAL[:-2]),
        (MistralCalls(), TEKKEN[:-1]),
        (MistralCalls(), TEKKEN + " and more"),
        (MistralCalls(), '[TOOL_CALLS]look_up[ARGS]["Oslo"]'),
        (FencedJson(), DEEPSEEK.replace("}", "", 1)),
        (FencedJson(), DEEPSEEK.replace(SEPARATOR, " ")),
        (PythonicCalls(), "[look_up('Oslo', 3)]"),
        (PythonicCalls(), "[look_up(city=open('x'))]"),
        (PythonicCalls(), "[look_up(**{'city': 'Oslo'})]"),
        (PythonicCalls(), "[look_up(city='Oslo', city='Bergen')]"),
        (PythonicCalls(), "[look_up(city='Oslo'"),
        (PythonicCalls(), "[(lambda: 1)()]"),
        (PythonicCalls(), "[look_up(days=1e999)]"),
        (PythonicCalls(), "<|tool_call_start|>what?<|tool_call_end|>"),
    ],
)
def test_a_call_whose_arguments_cannot_be_read_is_no_call_without_any(parser: ToolCallParser, text: str) -> None:
    assert parser(text) == [None]


@pytest.mark.parametrize(
    "text",
    [
        '{"answer": 42}',
        '{"name": "Bob", "age": 3}',
        '{"name": "Alice"}',
        '{"name": "Al", "type": "person", "id": 7}',
        "{1, 2}",
        "{",
        "[1, 2]",
        "[]",
        "[x]",
        "f(x=1)",
        "42",
    ],
)
def test_an_answer_that_looks_like_data_is_no_call(text: str) -> None:
    assert [list(form(text)) for form in FORMS] == [[]] * len(FORMS)


def test_arguments_as_json_text_are_read_once() -> None:
    inner = json.dumps(dict(PROBE.arguments))
    body = json.dumps({"name": PROBE.name, "arguments": inner})
    assert TaggedJson()(f"<tool_call>{body}</tool_call>") == MistralCalls()(f"[TOOL_CALLS][{body}]") == [PROBE]
    twice = json.dumps({"name": PROBE.name, "arguments": json.dumps(inner)})
    assert TaggedJson()(f"<tool_call>{twice}</tool_call>") == [None]


@pytest.mark.parametrize(("written", "meant"), [("True", True), ("true", True), ("null", None), ("maybe", "maybe")])
def test_plain_text_takes_the_tools_types_and_only_those(written: str, meant: object) -> None:
    plain = ToolCall(
        "look_up", {"is_exact": written, "city": "7", "tags": '["a"]', "more": "1"}, ("is_exact", "city", "tags")
    )
    expected = {"is_exact": meant if meant is not None else "null", "city": "7", "tags": ["a"], "more": "1"}
    assert typed_arguments(SCHEMA, plain) == expected
    assert typed_arguments(SCHEMA, ToolCall("look_up", {"days": "3"})) == {"days": "3"}, "JSON's types are final"


PIECES = (
    "<tool_call>", "</tool_call>", "<function=f>", "</function>", "<parameter=x>", "</parameter>", "<arg_key>",
    "</arg_key>", "<arg_value>", "</arg_value>", "[TOOL_CALLS]", "f[ARGS]", "{", "}", "[", "]", '"name"', ":",
    '"a"', "f(x=1)",
    ",", HEAD, SEPARATOR, TAIL, "```", "<|python_tag|>", "<|tool_call_start|>", "f", "\n", "\x00",
)  # fmt: skip


@given(st.lists(st.sampled_from(PIECES), max_size=30).map("".join) | st.text())
def test_no_text_breaks_a_form(text: str) -> None:
    for form in FORMS:
        assert all(call is None or isinstance(call, ToolCall) for call in form(text))
        form.content(text)


@pytest.mark.parametrize("piece", ["<tool_call>", "<parameter=a>", "<arg_key>", "[TOOL_CALLS]", "[", "f(", "{", HEAD])
def test_long_replies_are_read_in_linear_time(piece: str) -> None:
    text = "<tool_call><function=f>" + piece * 20_000
    started = time.process_time()
    for form in FORMS:
        form(text)
        form(text + "</function></tool_call>")
        form(piece * 20_000)
    assert time.process_time() - started < 5
