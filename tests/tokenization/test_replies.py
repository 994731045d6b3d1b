from __future__ import annotations

import pytest
from transformers import PreTrainedTokenizerBase

from lightning_opd.errors import ConfigError
from lightning_opd.tokenization.replies import (
    ReplyReader,
    ResponseTemplateCalls,
    call_id,
    reply_reader,
    structure_token_ids,
)
from lightning_opd.tokenization.tool_call_forms import MistralCalls, PythonicCalls, XmlArguments, XmlParameters
from lightning_opd.tokenization.tool_calls import BareJson, TaggedJson, ToolCall, ToolCallParser
from lightning_opd.tokenization.training import train_tokenizer
from tests.tiny import SPECIAL_TOKENS, TEXTS

TURN = "<|im_start|>{{ m['role'] }}\n{{ m['content'] }}"
OPEN = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
ITEMS = "{% for k, v in c.function.arguments.items() %}"
CALLS: dict[type[ToolCallParser], str] = {
    TaggedJson: "<tool_call>{{ c.function|tojson }}</tool_call>",
    BareJson: '{"name": "{{ c.function.name }}", "parameters": {{ c.function.arguments|tojson }}}',
    MistralCalls: "[TOOL_CALLS]{{ c.function.name }}[ARGS]{{ c.function.arguments|tojson }}",
    XmlParameters: "<tool_call>\n<function={{ c.function.name }}>\n"
    + ITEMS
    + "<parameter={{ k }}>\n{{ v }}\n</parameter>\n{% endfor %}</function>\n</tool_call>",
    XmlArguments: "<tool_call>{{ c.function.name }}\n"
    + ITEMS
    + "<arg_key>{{ k }}</arg_key>\n<arg_value>{{ v }}</arg_value>\n{% endfor %}</tool_call>",
    PythonicCalls: "[{{ c.function.name }}("
    + ITEMS
    + "{{ k }}={{ v|tojson }}{{ ', ' if not loop.last }}{% endfor %})]",
}
CALL = '<tool_call>{"name": "now", "arguments": {}}</tool_call>'


def tokenizer_with(call: str, lead: str = "") -> PreTrainedTokenizerBase:
    """Return a tokenizer whose template writes calls in a given form, and opens a reply with a lead."""
    tokenizer = train_tokenizer(TEXTS, vocab_size=288, special_tokens=SPECIAL_TOKENS)
    calls = f"{{% for c in m.tool_calls or [] %}}{call}{{% endfor %}}"
    messages = "{% for m in messages %}" + TURN + calls + "<|im_end|>\n{% endfor %}"
    tokenizer.chat_template = messages + OPEN.replace("assistant\n", f"assistant\n{lead}")
    return tokenizer


@pytest.mark.parametrize("form", CALLS)
def test_the_form_of_calls_is_the_one_that_the_template_writes(form: type[ToolCallParser]) -> None:
    assert isinstance(reply_reader(tokenizer_with(CALLS[form])).parser, form)
    assert isinstance(reply_reader(tokenizer_with(CALLS[form]), BareJson("[[")).parser, BareJson)


def test_a_template_without_calls_is_read_as_json_between_tags() -> None:
    reader = reply_reader(tokenizer_with(""))
    assert (reader.parser, reader.shows_calls, reader.is_known) == (TaggedJson(), False, True)


def test_a_form_that_nothing_reads_is_known_as_such() -> None:
    reader = reply_reader(tokenizer_with("please run {{ c.function.name }}"))
    assert (reader.shows_calls, reader.is_known) == (True, False)
    assert reply_reader(tokenizer_with(CALLS[BareJson])).is_known


def test_a_tokenizers_own_response_template_comes_first() -> None:
    tokenizer = tokenizer_with(CALLS[BareJson])
    call = {"open_pattern": r"CALL (?P<name>\w+)", "close": "END", "repeats": True, "content": "json"}
    made = {"transform": {"type": "function", "function": {"name": "{name}", "arguments": "{content}"}}}
    fields = {"content": {"content": "text"}, "tool_calls": {**call, **made}}
    anchor = {"start_anchor": "<|im_start|>assistant\n"}
    tokenizer.response_template = {"defaults": {"role": "assistant"}, **anchor, "fields": fields}
    parser = reply_reader(tokenizer).parser
    assert isinstance(parser, ResponseTemplateCalls)
    text = 'Hm. CALL f{"x": 1}ENDCALL g{}END'
    assert parser(text) == [ToolCall("f", {"x": 1}), ToolCall("g", {})]
    assert parser.content(text) == "Hm."
    assert parser("CALL f{x}END") == parser("CALL f[1]END") == [None]
    assert parser('{"answer": 42}') == []


def test_a_response_template_that_transformers_cannot_use_is_refused() -> None:
    tokenizer = tokenizer_with(CALLS[BareJson])
    tokenizer.response_template = {"fields": {"tool_calls": {"content": "json"}}}
    with pytest.raises(ConfigError, match=r"`response_template` of .* is not one"):
        reply_reader(tokenizer)


def test_a_call_that_is_only_considered_is_none() -> None:
    reader = ReplyReader()
    assert reader.calls(f"<think>Perhaps {CALL}?</think>No.") == []
    assert reader.calls(f"<think>Perhaps {CALL}") == []
    assert reader.calls(f"Perhaps {CALL}? Or not.</think>No.", prompt="assistant\n<think>\n") == []
    assert reader.calls(f"Perhaps {CALL}", prompt="assistant\n<think>") == []


def test_a_tag_mentioned_in_a_thought_hides_no_call() -> None:
    reader, thought = ReplyReader(), "I open <tool_call>, or [TOOL_CALLS] or <think>.</think>"
    assert reader.calls(f"<think>{thought}{CALL}") == [ToolCall("now", {})]
    assert reader.calls(f"{thought}{CALL}", prompt="assistant\n<think>\n") == [ToolCall("now", {})]
    assert reader.calls(f"<think></think>{CALL}<think>") == [ToolCall("now", {})]


def test_the_content_keeps_thoughts_and_drops_calls() -> None:
    reader = ReplyReader()
    assert reader.content(f"<think>a</think>Well. {CALL}") == "<think>a</think>Well."
    assert reader.content(f"a</think>Well. {CALL}", "assistant\n<think>\n") == "<think>\na</think>Well."


def test_ids_are_nine_letters_and_digits() -> None:
    ids = [call_id(number) for number in (0, 7, 99_999)]
    assert len(set(ids)) == 3
    assert all(len(one) == 9 and one.isalnum() for one in ids)


def test_added_tokens_that_are_text_are_no_structure() -> None:
    tokenizer = tokenizer_with(CALLS[XmlArguments])
    tokenizer.add_tokens(["\n\n", "    ", "<arg_key>"])  # Gemma adds its line breaks, GLM its tags
    tokenizer.add_tokens(["<|observation|>"], special_tokens=True)
    texts = set(tokenizer.convert_ids_to_tokens(structure_token_ids(tokenizer)))
    assert {"<|im_end|>", "<think>", "</think>", "<tool_call>", "</tool_call>", "<arg_key>", "<|observation|>"} <= texts
    assert not texts & {"\n\n", "    "}
