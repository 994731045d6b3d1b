from __future__ import annotations

import contextlib
import json
import random
import threading
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_opd.tasks.tools import Tool, ToolEnvironment, calculate, reverse_text, sort_text
from lightning_opd.tasks.tools.environment import MAX_CALLS
from lightning_opd.tasks.tools.limits import MAX_BYTES, TimeUp, call_in_child, call_in_process
from lightning_opd.tokenization.tool_calls import BareJson, render_tool_call

CALCULATOR, SORT, REVERSE = (Tool(tool, isolated=False) for tool in (calculate, sort_text, reverse_text))
QUESTION = ({"role": "user", "content": "What is 2+3?"},)
SLACK = 20.0
"""Seconds that a busy machine may add to a time-out: a tool that is not stopped takes a minute, or for ever."""


def misbehave(how: str) -> str:
    """Do anything but answer.

    Args:
        how: In which way.
    """
    if how == "loop":
        while True:
            pass
    if how == "sleep":
        time.sleep(60)
    if how == "loop in C":
        return str(sum(range(10**12)))
    if how == "hold on to everything":
        while True:
            with contextlib.suppress(BaseException):
                time.sleep(60)
    if how == "exit":
        raise SystemExit(3)
    if how == "raise":
        raise KeyError("no such thing")
    return "x" * 10**7


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


@pytest.mark.parametrize("how", ["loop", "sleep", "loop in C", "hold on to everything"])
def test_a_tool_that_hangs_costs_its_time_out_and_no_more(how: str) -> None:
    started = time.perf_counter()
    assert Tool(misbehave, timeout=0.2).call({"how": how}) == "error: no answer within 0.2 s"
    assert 0.2 <= time.perf_counter() - started < 0.2 + SLACK


@pytest.mark.parametrize("how", ["loop", "sleep"])
def test_an_alarm_interrupts_python_at_no_cost(how: str) -> None:
    started = time.perf_counter()
    assert Tool(misbehave, timeout=0.1, isolated=False).call({"how": how}) == "error: no answer within 0.1 s"
    assert 0.1 <= time.perf_counter() - started < 0.1 + SLACK


def test_whatever_else_a_tool_does_is_an_answer() -> None:
    assert Tool(misbehave, isolated=False).call({"how": "raise"}) == "error: 'no such thing'"
    assert Tool(misbehave).call({"how": "raise"}) == "error: KeyError: 'no such thing'"
    assert Tool(misbehave).call({"how": "exit"}) == "error: SystemExit: 3"
    assert Tool(misbehave, max_characters=7).call({"how": "talk"}) == "x" * 7
    assert Tool(misbehave).call({}) == "error: `how` is missing"
    assert len(call_in_child(lambda: "x" * 10**7, 5.0)) < MAX_BYTES + (1 << 17)


def test_a_child_changes_nothing_here_and_an_alarm_leaves_no_trace() -> None:
    import signal

    seen = [0]
    assert call_in_child(lambda: str(seen.pop()), 5.0) == "0"
    assert seen == [0]
    before = signal.getsignal(signal.SIGALRM)
    with pytest.raises(TimeUp):
        call_in_process(lambda: misbehave("loop"), 0.05)
    assert signal.getsignal(signal.SIGALRM) is before
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_an_alarm_needs_the_main_thread() -> None:
    answers: list[str] = []
    thread = threading.Thread(target=lambda: answers.append(calculated("1+1")))
    thread.start()
    thread.join()
    assert "main thread" in answers[0]


@pytest.mark.parametrize("wrong", [{"timeout": 0.0}, {"max_characters": 0}])
def test_limits_must_be_positive(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Tool(calculate, **wrong)


def episode(**settings: Any) -> ToolEnvironment:
    tools = (CALCULATOR, SORT, Tool(misbehave, timeout=0.1))
    return ToolEnvironment(QUESTION, tools, lambda reply: float(reply == "5"), **settings)


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


def test_a_model_family_brings_its_own_form_of_calls() -> None:
    environment = episode(parser=BareJson())
    assert said(environment, '{"name": "calculate", "parameters": {"expression": "2+3"}}') == ["5"]
    assert said(environment, "5") == []


def test_a_reply_cannot_make_calls_without_end() -> None:
    many = render_tool_call("calculate", {"expression": "1"}) * 1000
    assert said(episode(), many) == ["1"] * MAX_CALLS + [f"error: only the first {MAX_CALLS} calls were answered"]


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
        assert len(answers) <= MAX_CALLS + 1
        assert all(len(answer) <= 2000 for answer in answers)
        assert environment.reward() == 0.0
    assert errors > 300
    assert longest < 1.5
    assert time.process_time() - started < 60
