from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_opd.interfaces import FormatRule
from lightning_opd.tasks.format_rules import (
    NamedRule,
    SpecialTokenInside,
    TextAfterFinalTag,
    ThinkOnce,
    Truncated,
    UnbalancedTags,
    UnknownTool,
    UnparsableToolCall,
    WrongArguments,
)
from lightning_opd.tokenization.tool_calls import BareJson
from lightning_opd.types import Prompt, Trajectory, Turn

CALL = '<tool_call>{"name": "calc", "arguments": {"result": "85"}}</tool_call>'
RESULT = {
    "function": {
        "parameters": {
            "type": "object",
            "properties": {"result": {"type": "string"}, "unit": {"type": "string"}},
            "required": ["result"],
        }
    }
}
GOOD = f"<think>7+8=15 carry 1</think>{CALL}"
RULES: tuple[FormatRule, ...] = (
    Truncated(),
    UnbalancedTags(),
    UnbalancedTags("<think>", "</think>"),
    UnparsableToolCall(),
    UnknownTool(("calc",)),
    TextAfterFinalTag(),
    ThinkOnce(),
    WrongArguments({"calc": RESULT}),
    SpecialTokenInside(),
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
        (GOOD + "<|im_start|>", {"text_after_final_tag", "special_token_inside"}),
        (GOOD.replace("carry", "<|endoftext|>"), {"special_token_inside"}),
        (GOOD.replace("carry", "<|not one of ours|>"), set()),
        (GOOD.replace('"85"', "85"), {"wrong_arguments"}),
        (GOOD.replace('"result"', '"answer"'), {"wrong_arguments"}),
        (GOOD.replace('{"result": "85"}', "{}"), {"wrong_arguments"}),
        (GOOD.replace("}}", ', "unit": null}}'), {"wrong_arguments"}),
        (GOOD.replace("}}", ', "unit": "m"}}'), set()),
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


def test_special_tokens_are_found_by_id_but_not_where_they_stop_the_reply() -> None:
    rule = SpecialTokenInside(token_ids=(7, 9))
    prompt = Prompt((), "0", "t", "d")

    def is_broken(*token_ids: int) -> bool:
        turns = (Turn((), 0, 1, "a"), Turn((), 2, 2 + len(token_ids), "b"))
        everything = (7, 9, *token_ids)
        mask = (True, False, *(True for _ in token_ids))
        trajectory = Trajectory(prompt, everything, mask, (), "b", is_truncated=False, turns=turns)
        assert trajectory.reply_ids == token_ids
        return rule.is_broken(trajectory)

    assert not is_broken(1, 2, 9)
    assert is_broken(1, 7, 2, 9)
    assert is_broken(9, 9)
    assert not is_broken()


def test_rules_read_calls_in_the_models_own_form() -> None:
    rules = (UnparsableToolCall(BareJson()), UnknownTool(("calc",), BareJson()))
    prompt = Prompt((), "0", "t", "d")

    def names(text: str) -> list[str]:
        return [rule.name for rule in rules if rule.is_broken(Trajectory(prompt, (), (), (), text, is_truncated=False))]

    assert names('{"name": "calc", "parameters": {}}') == names(CALL) == names("85") == []
    assert names('{"name": "calc"') == ["unparsable_tool_call"]
    assert names('{"name": "shell", "parameters": {}}') == ["unknown_tool"]


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
