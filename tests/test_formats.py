from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_opd.formats import (
    NamedRule,
    TextAfterFinalTag,
    ThinkOnce,
    Truncated,
    UnbalancedTags,
    UnknownTool,
    UnparsableToolCall,
)
from lightning_opd.interfaces import FormatRule
from lightning_opd.types import Prompt, Trajectory

CALL = '<tool_call>{"name": "calc", "arguments": {"result": "85"}}</tool_call>'
GOOD = f"<think>7+8=15 carry 1</think>{CALL}"
RULES: tuple[FormatRule, ...] = (
    Truncated(),
    UnbalancedTags(),
    UnbalancedTags("<think>", "</think>"),
    UnparsableToolCall(),
    UnknownTool(("calc",)),
    TextAfterFinalTag(),
    ThinkOnce(),
)


def broken(text: str, *, is_truncated: bool = False) -> set[str]:
    prompt = Prompt((), "0", "t", "d")
    trajectory = Trajectory(prompt, (), (), (), text, is_truncated=is_truncated)
    return {rule.name for rule in RULES if rule.is_broken(trajectory)}


def test_a_good_reply_breaks_no_rule() -> None:
    assert broken(GOOD) == broken(f" {GOOD}\n ") == set()


def test_several_calls_and_text_between_are_well_formed() -> None:
    assert broken(f"First. {GOOD} Then. {CALL}") == set()


def test_only_the_missing_thoughts_are_missed_in_plain_text() -> None:
    assert broken("85") == broken("") == {"think_once"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (GOOD.replace("</tool_call>", ""), {"unbalanced_tool_call"}),
        (GOOD.replace("<tool_call>", ""), {"unbalanced_tool_call"}),
        (GOOD + "</tool_call>", {"unbalanced_tool_call"}),
        (GOOD + "<tool_call>", {"unbalanced_tool_call", "text_after_final_tag"}),
        ("</tool_call><tool_call>" + GOOD, {"unbalanced_tool_call", "unparsable_tool_call"}),
        (GOOD.replace("<tool_call>", "<tool_call>" * 2), {"unbalanced_tool_call", "unparsable_tool_call"}),
        (GOOD.replace("</think>", ""), {"unbalanced_think", "think_once"}),
        (GOOD.replace("<think>", ""), {"unbalanced_think", "think_once"}),
        (f"</think>x<think>{CALL}", {"unbalanced_think", "think_once"}),
        (f"<think>a</think>{GOOD}", {"think_once"}),
        (f"<think><think>a</think></think>{CALL}", {"unbalanced_think", "think_once"}),
        (GOOD.replace('"}}', '"}'), {"unparsable_tool_call"}),
        (GOOD.replace("{", ""), {"unparsable_tool_call"}),
        (GOOD.replace('"arguments": {', '"arguments": [{').replace("}}", "}]}"), {"unparsable_tool_call"}),
        (GOOD + "<tool_call></tool_call>", {"unparsable_tool_call"}),
        (GOOD.replace("calc", "text"), {"unknown_tool"}),
        (GOOD.replace("calc", "calc "), {"unknown_tool"}),
        (GOOD + CALL.replace("calc", "shell"), {"unknown_tool"}),
        (GOOD + " The sum is 85.", {"text_after_final_tag"}),
        (GOOD + "<|im_start|>", {"text_after_final_tag"}),
        (GOOD + "\N{ZERO WIDTH SPACE}", {"text_after_final_tag"}),
        (GOOD.replace("<think>", "<Think>"), {"unbalanced_think", "think_once"}),
    ],
)
def test_each_fault_is_found_under_its_own_name(text: str, expected: set[str]) -> None:
    assert broken(text) == expected


def test_a_reply_at_the_length_limit_is_truncated_whatever_it_says() -> None:
    assert broken(GOOD, is_truncated=True) == {"truncated"}


def test_tags_of_another_kind_may_be_checked() -> None:
    rule = UnbalancedTags("[[", "]]")
    prompt = Prompt((), "0", "t", "d")
    texts = {"[[a]]": False, "[[a": True, "a]]": True, "[[[[a]]]]": True, "a": False}
    assert {t: rule.is_broken(Trajectory(prompt, (), (), (), t, is_truncated=False)) for t in texts} == texts


@given(st.lists(st.sampled_from(["<tool_call>", "</tool_call>", "<think>", "</think>", "x", '{"name": "calc"}'])))
def test_balance_agrees_with_reading_tag_by_tag(pieces: list[str]) -> None:
    is_open = is_bad = False
    for piece in pieces:
        if piece in ("<tool_call>", "</tool_call>"):
            is_bad |= is_open == (piece == "<tool_call>")
            is_open = piece == "<tool_call>"
    assert ("unbalanced_tool_call" in broken("".join(pieces))) == (is_bad or is_open)


@given(st.text())
def test_no_text_breaks_a_rule_itself(text: str) -> None:
    broken(text)
    broken(f"<tool_call>{text}</tool_call>")


def test_names_are_unique_and_in_snake_case() -> None:
    names = [rule.name for rule in RULES]
    assert len(set(names)) == len(names)
    assert all(name == name.lower() and name.isidentifier() for name in names)
    assert {rule.name for rule in (child() for child in (Truncated, ThinkOnce))} == {"truncated", "think_once"}
    assert all(isinstance(rule, NamedRule) for rule in RULES)
