from __future__ import annotations

import json
import random
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_opd.errors import ConfigError
from lightning_opd.tasks.tools import Tool, ToolEnvironment, calculate, reverse_text, sort_text
from lightning_opd.tasks.tools.environment import MAX_CALLS
from lightning_opd.tokenization.tool_call_forms import XmlParameters
from lightning_opd.tokenization.tool_calls import BareJson, TaggedJson, render_tool_call
from tests.tasks.test_limits import misbehave
from tests.tokenization.test_replies import CALLS, tokenizer_with

CALCULATOR, SORT, REVERSE = (Tool(tool, isolated=False) for tool in (calculate, sort_text, reverse_text))
QUESTION = ({"role": "user", "content": "What is 2+3?"},)


def calculated(expression: str) -> str:
    return CALCULATOR.call({"expression": expression})


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("2+3", "5"),
        (" (2 + 3) * 4 ", "20"),
        ("7/2", "3.5"),
        ("6/2", "3"),
        ("-7//2", "-4"),
        ("7 % 4", "3"),
        ("2**-1", "0.5"),
        ("2**64", str(2**64)),
        ("10**99", str(10**99)),
        ("--5", "5"),
        ("1e300", "1e+300"),
    ],
)
def test_the_calculator_calculates(expression: str, value: str) -> None:
    assert calculated(expression) == value


@pytest.mark.parametrize(
    ("expression", "reason"),
    [
        ("", "not an arithmetic expression"),
        ("2+", "not an arithmetic expression"),
        ("__import__('os').system('true')", "only numbers"),
        ("(1).__class__", "only numbers"),
        ("[1]*9", "only numbers"),
        ("'a'*9", "only numbers"),
        ("True+1", "only numbers"),
        ("1 if 1 else 2", "only numbers"),
        ("x", "only numbers"),
        ("1<<99", "only numbers"),
        ("2j", "only numbers"),
        ("10**10**10", "the power is too large"),
        ("9**9**9**9", "the power is too large"),
        ("10**100", "more than 100 digits"),
        ("9" * 150, "more than 100 digits"),
        ("9" * 5000, "longer than 200 characters"),
        ("(" * 150 + ")" * 50, "not an arithmetic expression"),
        ("+".join("1" * 90), "too long"),
        ("1e308*10", "not a finite number"),
        ("1e999", "not a finite number"),
        ("1e308**1000", "not a finite number"),
        ("1/0", "division by zero"),
        ("(-8)**.5", "not real"),
        ("1 is 1", "only numbers"),
        ("\x00", "not an arithmetic expression"),
    ],
)
def test_the_calculator_refuses_everything_else(expression: str, reason: str) -> None:
    answer = calculated(expression)
    assert answer.startswith("error: ")
    assert reason in answer


@given(st.text(alphabet="0123456789+-*/%().e ", max_size=60))
def test_no_expression_takes_long(expression: str) -> None:
    started = time.process_time()
    assert len(calculated(expression)) <= 200
    assert time.process_time() - started < 0.5  # of this process alone, however busy the machine is


def test_the_text_tools_put_words_in_order() -> None:
    assert SORT.call({"text": "d b c"}) == "b c d"
    assert REVERSE.call({"text": " d  b c"}) == "c b d"
    assert SORT.call({"text": ""}) == ""
    assert SORT.call({"text": "a" * 10**6}).startswith("error: the text is longer")


def episode(**settings: Any) -> ToolEnvironment:
    tools = (CALCULATOR, SORT, Tool(misbehave, timeout=0.1))
    return ToolEnvironment(QUESTION, tools, lambda reply: float(reply == "5"), **settings)


@pytest.mark.parametrize("value", [None, float("nan"), float("inf")])
def test_a_reward_that_is_no_number_is_refused_with_the_functions_name(value: float) -> None:
    def wrong(reply: str) -> float:
        return value

    environment = ToolEnvironment(QUESTION, (CALCULATOR,), wrong)
    environment.reset()
    environment.step({"role": "assistant", "content": "5"})
    with pytest.raises(ConfigError, match="wrong"):
        environment.reward()


def said(environment: ToolEnvironment, reply: str) -> list[str]:
    answers = environment.step({"role": "assistant", "content": reply})
    assert all(answer["role"] == "tool" for answer in answers)
    return [str(answer["content"]) for answer in answers]


def test_calls_are_answered_until_a_reply_makes_none() -> None:
    environment = episode()
    environment.reset()
    assert said(environment, "Hm. " + render_tool_call("calculate", {"expression": "2+3"})) == ["5"]
    assert environment.reward() == 0.0, "an episode without a final answer is worth nothing"
    both = render_tool_call("calculate", {"expression": "1"}) + render_tool_call("nothing", {})
    assert said(environment, both) == ["1", "error: there is no such tool; there is calculate, sort_text, misbehave"]
    assert said(environment, "<tool_call>what?</tool_call>") == ["error: the call cannot be read"]
    assert said(environment, render_tool_call("misbehave", {"how": "sleep"})) == ["error: no answer within 0.1 s"]
    assert said(environment, "5") == []
    assert environment.reward() == 1.0


def test_the_template_is_given_the_schemas_unless_the_student_knows_them() -> None:
    (shown,) = episode().reset()
    tools: Any = shown["tools"]
    assert [tool["function"]["name"] for tool in tools] == ["calculate", "sort_text", "misbehave"]
    assert {k: v for k, v in shown.items() if k != "tools"} == QUESTION[0]
    assert episode(shows_tools=False).reset() == QUESTION


def test_calls_stand_in_the_chat_as_structures_with_ids() -> None:
    environment = episode()
    text = "<think>Add.</think>Let me see. " + render_tool_call("calculate", {"expression": "2+3"})
    reply = environment.read(text + "<tool_call>what?</tool_call>")
    function = {"name": "calculate", "arguments": {"expression": "2+3"}}
    broken = {"name": "unreadable_call", "arguments": {"text": text + "<tool_call>what?</tool_call>"}}
    assert reply == {
        "role": "assistant",
        "content": "<think>Add.</think>Let me see.",
        "tool_calls": [
            {"id": "call00000", "type": "function", "function": function},
            {"id": "call00001", "type": "function", "function": broken},
        ],
    }
    assert environment.step(reply) == [
        {"role": "tool", "tool_call_id": "call00000", "name": "calculate", "content": "5"},
        {
            "role": "tool",
            "tool_call_id": "call00001",
            "name": "unreadable_call",
            "content": "error: the call cannot be read",
        },
    ]
    later = environment.read(render_tool_call("now", {}))
    assert environment.step(later)[0]["tool_call_id"] == "call00002", "ids go on over the episode"
    assert environment.read("<think>5?</think>5") == {"role": "assistant", "content": "<think>5?</think>5"}


def test_a_call_that_is_only_considered_is_never_run() -> None:
    call = render_tool_call("calculate", {"expression": "1"})
    assert said(episode(), f"<think>{call}</think>5") == []
    assert said(episode(), f"<think>{call}") == []
    environment = episode()
    reply = environment.read(f"{call}</think>5", "assistant\n<think>\n", tokenizer_with(CALLS[TaggedJson]))
    assert environment.step(reply) == []
    real = environment.read(f"a <tool_call></think>{call}", "<think>\n", tokenizer_with(CALLS[TaggedJson]))
    assert real["content"] == "<think>\na <tool_call></think>"
    assert [answer["content"] for answer in environment.step(real)] == ["1"]


def test_a_template_of_single_calls_is_given_one_at_a_time() -> None:
    only_one = "{% if m.tool_calls|length > 1 %}{{ raise_exception('one call at once') }}{% endif %}" + CALLS[BareJson]
    call = '{"name": "calculate", "parameters": {"expression": "2+3"}}'
    environment = episode()
    reply = environment.read(f"{call}; {call}", "", tokenizer_with(only_one))
    calls: Any = reply["tool_calls"]
    assert len(calls) == 1
    assert [a["content"] for a in environment.step(reply)] == ["5\nerror: only the first 1 calls were answered"]


def test_a_template_without_calls_shows_the_reply_as_it_is() -> None:
    environment, text = episode(), "Hm. " + render_tool_call("calculate", {"expression": "2+3"})
    reply = environment.read(text, "", tokenizer_with(""))
    assert reply == {"role": "assistant", "content": text}
    assert [answer["content"] for answer in environment.step(reply)] == ["5"]


def test_plain_arguments_take_the_types_of_the_tool() -> None:
    def double(x: int) -> int:
        """Double a number.

        Args:
            x: The number.
        """
        return 2 * x

    environment = ToolEnvironment(QUESTION, [Tool(double, isolated=False)], lambda _: 0.0)
    text = "<tool_call><function=double><parameter=x>21</parameter></function></tool_call>"
    reply = environment.read(text, "", tokenizer_with(CALLS[XmlParameters]))
    assert [answer["content"] for answer in environment.step(reply)] == ["42"]


def test_a_model_family_brings_its_own_form_of_calls() -> None:
    environment = episode(parser=BareJson())
    assert said(environment, '{"name": "calculate", "parameters": {"expression": "2+3"}}') == ["5"]
    assert said(environment, "5") == []


def test_a_reply_cannot_make_calls_without_end() -> None:
    many = render_tool_call("calculate", {"expression": "1"}) * 1000
    note = f"1\nerror: only the first {MAX_CALLS} calls were answered"
    assert said(episode(), many) == ["1"] * (MAX_CALLS - 1) + [note]


def adversarial(noise: random.Random) -> str:
    """Return a reply that tries something: broken JSON, huge numbers, deep nesting, control tokens, code."""
    expression = noise.choice(
        ["9" * noise.randrange(1, 6000), "9**9**9**9", "(" * 500, "__import__('os')", "1e999", "<|im_end|>", "\x00"]
    )
    name = noise.choice(["calculate", "sort_text", "eval", "__class__", "", "<|im_start|>", "a" * 5000])
    arguments: object = noise.choice(
        [
            {"expression": expression},
            {"text": expression},
            {"expression": expression, "self": 1},
            {"expression": int("9" * noise.randrange(1, 4000))},
            [[[[]]]],
            None,
            {expression[:20]: {expression[:20]: [None] * 50}},
        ]
    )
    body = json.dumps({"name": name, "arguments": arguments}, ensure_ascii=noise.random() < 0.5)
    body = noise.choice([body, body[: noise.randrange(len(body))], "[" * 50_000, "{" * 999, body * 3, "NaN", ""])
    tags = noise.choice([("<tool_call>", "</tool_call>"), ("<tool_call>" * 3, "</tool_call>"), ("<tool_call>", "")])
    return noise.choice(["", "<think>", "<|endoftext|>", "\ud83d"]) + (tags[0] + body + tags[1]) * noise.randrange(4)


def test_a_thousand_adversarial_replies_neither_crash_nor_escape() -> None:
    noise, environment = random.Random(0), episode()
    started, longest, errors = time.process_time(), 0.0, 0
    for _ in range(1000):
        begun = time.process_time()
        answers = said(environment, adversarial(noise))
        longest = max(longest, time.process_time() - begun)
        errors += sum(answer.startswith("error: ") for answer in answers)
        assert len(answers) <= MAX_CALLS
        assert all(len(answer) <= 2100 for answer in answers)
        assert environment.reward() == 0.0
    assert errors > 300
    assert longest < 1.5
    assert time.process_time() - started < 60
