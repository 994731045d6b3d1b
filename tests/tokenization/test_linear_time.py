"""Whatever a model generates, reading it takes time in proportion to its length."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from lightning_opd.tasks.answers import ChoiceAnswer, NumberAnswer, _normalised
from lightning_opd.tokenization.replies import FORMS, ReplyReader
from lightning_opd.tokenization.thoughts import count_thoughts, split_thoughts
from lightning_opd.tokenization.tool_call_forms import FencedJson, XmlArguments, XmlParameters
from lightning_opd.tokenization.tool_calls import BareJson, TaggedJson, only_call

SMALL, FACTOR = 20_000, 10
FENCED = FencedJson()
NUMBER, CHOICE = partial(NumberAnswer().matches, answer="3"), partial(ChoiceAnswer().matches, answer="B")
COMMON = ("{", "[", "\n", "\\", "7", "<tool_call>", "<tool_call></tool_call>", "<think></think>", '{"name":', '"')
CALLS = (
    '{"name":"a"};',
    "<function=a>",
    "</function>",
    "[TOOL_CALLS]a[ARGS]{}",
    "a(b=1),",
    "<arg_key>",
    FENCED.open_tag,
    "<|python_tag|>",
    "<|python_start|>",
    "<|python_start|>a()<|python_end|>",
)
CASES: list[tuple[str, Callable[[str], Any], str, str]] = [
    *((f"{type(form).__name__} of {unit!r}", form, "", unit) for form in FORMS for unit in (*COMMON, *CALLS)),
    ("calls that are left open", TaggedJson(is_lenient=True), "", "<tool_call>"),
    ("whole calls", TaggedJson().content, "", '<tool_call>{"name":"a"}</tool_call>'),
    ("calls as bare JSON", BareJson(), "", '{"name":"a"};'),
    ("parameters", XmlParameters().read_body, "<function=a>", "<parameter=a></parameter>"),
    ("closed functions", XmlParameters().read_body, "<function=a>", "</function>"),
    ("arguments", XmlArguments().read_body, "a", "<arg_key>a</arg_key><arg_value></arg_value>"),
    ("white space of arguments", XmlArguments().read_body, "a<arg_key>", " "),
    ("a fence", FENCED.read_body, f"a{FENCED.separator} b```", " "),
    ("fences", FENCED.read_body, f"a{FENCED.separator}", "```json"),
    ("thoughts", split_thoughts, "", "<think></think>"),
    ("thoughts that are counted", count_thoughts, "", "<think></think>"),
    ("a reply", ReplyReader().content, "", "<think></think><tool_call></tool_call>"),
    ("one call", only_call, "", "<tool_call>{"),
    ("digits", NUMBER, "", "7"),
    ("groups of digits", NUMBER, "", "1 000 "),
    ("LaTeX", NUMBER, "", "\\frac{ "),
    ("spaces", NUMBER, "1", " "),
    ("boxes", CHOICE, "", "\\boxed{"),
    ("answers", CHOICE, "", "answer is ("),
    ("digits without a power", _normalised, "", "7"),
    ("decimals without a power", _normalised, "", "7.7"),
]


@pytest.mark.parametrize(("read", "begin", "unit"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_reading_ten_times_the_text_takes_about_ten_times_as_long(
    read: Callable[[str], Any], begin: str, unit: str
) -> None:
    def seconds(length: int) -> float:
        text, times = begin + unit * (length // len(unit)), []
        for _ in range(2):
            started = time.process_time()
            read(text)
            times.append(time.process_time() - started)
        return min(times)

    seconds(100)  # warm
    gc.disable()  # it looks at all objects of the process, however few of them are the reader's
    try:
        factors = (seconds(SMALL * FACTOR) / max(seconds(SMALL), 0.001) for _ in range(4))  # other processes disturb
        assert any(factor < 1.2 * FACTOR for factor in factors)
    finally:
        gc.enable()
