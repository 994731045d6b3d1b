"""Format rules that take tags and control tokens from the student's tokenizer and chat template."""

from __future__ import annotations

import pytest
from transformers import PreTrainedTokenizerBase

from lightning_opd.interfaces import FormatRule
from lightning_opd.tasks import CalculatorAgent, Mixture
from lightning_opd.tasks.format_rules import (
    SpecialTokenInside,
    TextAfterFinalTag,
    ThinkOnce,
    UnbalancedTags,
    UnknownTool,
    UnparsableToolCall,
    WrongArguments,
)
from lightning_opd.tokenization.tool_call_forms import MistralCalls, XmlParameters
from lightning_opd.tokenization.tool_calls import BareJson, TaggedJson, ToolCallParser
from lightning_opd.tokenization.tool_schema import Schema
from lightning_opd.types import Prompt, Trajectory, Turn
from tests.tokenization.test_replies import CALLS, tokenizer_with

PARAMETERS = {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]}
SCHEMAS: dict[str, Schema] = {"f": {"function": {"parameters": PARAMETERS}}}
RULES: tuple[FormatRule, ...] = (
    UnbalancedTags(),
    UnparsableToolCall(),
    UnknownTool(("f",)),
    WrongArguments(SCHEMAS),
    TextAfterFinalTag(),
    ThinkOnce(),
    SpecialTokenInside(),
)
CALL: dict[type[ToolCallParser], str] = {
    TaggedJson: '<tool_call>{"name": "NAME", "arguments": {"x": X}}</tool_call>',
    XmlParameters: "<tool_call>\n<function=NAME>\n<parameter=x>\nX\n</parameter>\n</function>\n</tool_call>",
    BareJson: '{"name": "NAME", "parameters": {"x": X}}',
    MistralCalls: '[TOOL_CALLS]NAME[ARGS]{"x": X}',
}


def call(form: type[ToolCallParser], name: str = "f", x: str = "1") -> str:
    return CALL[form].replace("NAME", name).replace("X", x)


def broken(tokenizer: PreTrainedTokenizerBase, text: str, lead: str = "") -> set[str]:
    before = tokenizer.encode(f"<|im_start|>assistant\n{lead}", add_special_tokens=False)
    after = tokenizer.encode(text, add_special_tokens=False)
    turns = (Turn((), len(before), len(before) + len(after), text),)
    mask = (False,) * len(before) + (True,) * len(after)
    trajectory = Trajectory(
        Prompt((), "0", "t", "d"), (*before, *after), mask, (0.0,) * len(mask), text, is_truncated=False, turns=turns
    )
    rules = [rule.for_tokenizer(tokenizer) for rule in RULES]
    assert [rule.name for rule in rules] == [rule.name for rule in RULES]
    return {rule.name for rule in rules if rule.is_broken(trajectory)}


@pytest.mark.parametrize("form", CALL)
def test_a_good_call_in_the_familys_form_breaks_no_rule(form: type[ToolCallParser]) -> None:
    tokenizer, thought = tokenizer_with(CALLS[form]), "<think>What about a call?</think>"
    assert broken(tokenizer, thought + call(form)) == set()
    assert broken(tokenizer, thought + call(form, name="g")) == {"unknown_tool"}
    assert broken(tokenizer, thought + call(form, x='"a"')) == {"wrong_arguments"}
    cut = call(form).replace("}", "", 1).replace("</parameter>", "")
    assert broken(tokenizer, thought + cut) == {"unparsable_tool_call"}


def test_only_tags_of_the_students_own_form_must_be_balanced() -> None:
    text = "<think></think>See <tool_call>."
    assert broken(tokenizer_with(CALLS[TaggedJson]), text) == {"unbalanced_tool_call"}
    assert broken(tokenizer_with(CALLS[BareJson]), text) == {"special_token_inside"}, "it is no tag of its calls"
    assert broken(tokenizer_with(CALLS[TaggedJson]), f"<think></think>{call(TaggedJson)} Done.") == {
        "text_after_final_tag"
    }
    assert broken(tokenizer_with(CALLS[BareJson]), "<think></think>Done.</tool_response> Really.") == set()


def test_a_thought_that_the_prompt_opened_counts() -> None:
    tokenizer = tokenizer_with(CALLS[TaggedJson], "<think>\n")
    assert broken(tokenizer, f"Well.</think>{call(TaggedJson)}", "<think>\n") == set()
    assert broken(tokenizer, f"<think>Well.</think>{call(TaggedJson)}", "<think>\n") == {"think_once"}
    assert broken(tokenizer, f"Well.</think>{call(TaggedJson)}") == {"think_once"}
    assert broken(tokenizer, f"What is <tool_call>?</think>{call(TaggedJson)}", "<think>\n") == set()


def test_control_tokens_are_those_of_the_tokenizer() -> None:
    tokenizer = tokenizer_with(CALLS[TaggedJson])
    assert broken(tokenizer, "<think></think><|im_start|>") == {"special_token_inside"}
    assert broken(tokenizer, "<think></think><|python_tag|>") == set(), "text, for this tokenizer"
    tokenizer.add_tokens(["[INST]"], special_tokens=True)
    assert broken(tokenizer, "<think></think>[INST] a") == {"special_token_inside"}


def test_rules_of_a_mixture_and_rules_with_tags_of_their_own_stay_what_they_are() -> None:
    tokenizer, task = tokenizer_with(CALLS[BareJson]), Mixture({"a": CalculatorAgent(), "b": None})
    rules = [rule.for_tokenizer(tokenizer) for rule in task.format_rules()]
    assert [rule.name for rule in rules] == [rule.name for rule in task.format_rules()]
    explicit = UnbalancedTags("[[", "]]")
    assert explicit.for_tokenizer(tokenizer) is explicit
    assert TextAfterFinalTag("]]").for_tokenizer(tokenizer) == TextAfterFinalTag("]]")
    assert SpecialTokenInside("x").for_tokenizer(tokenizer) == SpecialTokenInside("x")
