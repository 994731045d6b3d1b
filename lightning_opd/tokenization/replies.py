"""How replies of a model are read: its thoughts, its calls, and what it says besides."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

from typing_extensions import override

from lightning_opd.errors import ConfigError
from lightning_opd.tokenization.rendering import control_token_ids, render
from lightning_opd.tokenization.template_cache import by_template
from lightning_opd.tokenization.thoughts import THINK, Tags, opens_thought, split_thoughts, thought_tags
from lightning_opd.tokenization.tool_call_forms import (
    FencedJson,
    MistralCalls,
    PythonicCalls,
    XmlArguments,
    XmlParameters,
)
from lightning_opd.tokenization.tool_calls import BareJson, TaggedJson, ToolCall, ToolCallParser, call_from_json
from lightning_opd.tokenization.tool_schema import typed_arguments
from lightning_opd.types import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FORMS: tuple[ToolCallParser, ...] = (
    TaggedJson(),
    XmlParameters(),
    XmlArguments(),
    MistralCalls(),
    FencedJson(),
    PythonicCalls(),
    BareJson(),
)
"""The forms that are known; a template's own is the one that reads what the template writes."""

UNREADABLE = "unreadable_call"
"""Name under which a call that cannot be read stands in a chat."""

PROBE = ToolCall("look_up", {"city": "Oslo", "days": 3})
PROBE_TOOL: Mapping[str, object] = {
    "type": "function",
    "function": {
        "name": "look_up",
        "description": "Look it up.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "description": "Where."},
                "days": {"type": "integer", "description": "How many."},
            },
            "required": ["city", "days"],
        },
    },
}


@dataclass(frozen=True)
class ReplyReader:
    """Reads a model's replies.

    Args:
        parser: Finds the calls.
        thoughts: What opens and closes a thought; calls inside one are none.
        shows_calls: Whether the chat template writes a message's `tool_calls`.
        is_known: Whether `parser` reads what the chat template writes; True where it writes no calls.
        takes_several: Whether the chat template takes several calls in one message.
    """

    parser: ToolCallParser = TaggedJson()
    thoughts: Tags = THINK
    shows_calls: bool = True
    is_known: bool = True
    takes_several: bool = True

    def split(self, text: str, prompt: str = "") -> tuple[str, str]:
        """Return a reply's thoughts and the rest; the prompt's end tells whether it opened a thought already."""
        return split_thoughts(text, self.thoughts, is_open=opens_thought(prompt, self.thoughts))

    def calls(self, text: str, prompt: str = "") -> Sequence[ToolCall | None]:
        """Return the calls outside of thoughts in order, None for one that cannot be read."""
        return self.parser(self.split(text, prompt)[1])

    def content(self, text: str, prompt: str = "") -> str:
        """Return the thoughts, the one that the prompt opened with its opening tag, and what is said besides calls."""
        thoughts, said = self.split(text, prompt)
        opened = self.thoughts[0] + "\n" if opens_thought(prompt, self.thoughts) else ""
        return opened + thoughts + self.parser.content(said)


@dataclass(frozen=True, eq=False)
class ResponseTemplateCalls(ToolCallParser):
    """Calls as transformers finds them with the `response_template` that a tokenizer brings along."""

    tokenizer: PreTrainedTokenizerBase

    @override
    def __call__(self, text: str) -> list[ToolCall | None]:
        try:
            found = self._message(text).get("tool_calls") or []
        except (ValueError, KeyError, TypeError, RecursionError):
            return [None]
        calls = [call_from_json(call) for call in found]
        return calls if self._has_types() else [call and _in_plain_text(call) for call in calls]

    @override
    def content(self, text: str) -> str:
        try:
            return str(self._message(text).get("content") or "")
        except (ValueError, KeyError, TypeError, RecursionError):
            return ""

    def _message(self, text: str) -> dict[str, Any]:
        return cast("dict[str, Any]", self.tokenizer.parse_response(text, prefix=""))

    def _has_types(self) -> bool:
        fields = cast("Mapping[str, Mapping[str, Mapping[str, object]]]", self.tokenizer.response_template)["fields"]
        return fields.get("tool_calls", {}).get("content") == "json"


def _in_plain_text(call: ToolCall) -> ToolCall:
    return ToolCall(call.name, call.arguments, tuple(k for k, v in call.arguments.items() if isinstance(v, str)))


def reply_reader(tokenizer: PreTrainedTokenizerBase, parser: ToolCallParser | None = None) -> ReplyReader:
    """Return what reads a model's replies.

    Calls are found by the tokenizer's own `response_template`, where it has one, otherwise by the form in which the
    chat template writes calls; by JSON between `<tool_call>` tags where it writes none.

    Args:
        tokenizer: With its chat template.
        parser: Finds the calls instead.
    """
    own = _reader_of(tokenizer)
    return own if parser is None else replace(own, parser=parser, is_known=True)


@by_template
def _reader_of(tokenizer: PreTrainedTokenizerBase) -> ReplyReader:
    thoughts = thought_tags(tokenizer)
    _, said = split_thoughts(_rendered_calls(tokenizer, 1), thoughts)
    shows_calls = PROBE.name in said
    takes_several = not shows_calls or PROBE.name in _rendered_calls(tokenizer, 2)
    if tokenizer.response_template is not None:
        _check_response_template(tokenizer)
        return ReplyReader(ResponseTemplateCalls(tokenizer), thoughts, shows_calls, takes_several=takes_several)
    form = _form_of(said)
    return ReplyReader(form or TaggedJson(), thoughts, shows_calls, form is not None, takes_several)


def _form_of(said: str) -> ToolCallParser | None:
    """Return the form that reads the probe in what a template wrote; JSON between tags where it is not there."""
    if PROBE.name not in said:
        return TaggedJson()
    for form in FORMS:
        calls = form(said)
        if len(calls) == 1 and calls[0] is not None and _is_probe(calls[0]):
            return form
    return None


@by_template
def call_format(tokenizer: PreTrainedTokenizerBase) -> tuple[ToolCallParser | None, frozenset[str]]:
    """Return the form in which the chat template writes calls, None for an unknown one, and its markers that it uses.

    Where both are the same for two templates, what follows a marker looks alike.
    """
    _, said = split_thoughts(_rendered_calls(tokenizer, 1), thought_tags(tokenizer))
    form = _form_of(said)
    known = TaggedJson() if form is None else form
    return form, frozenset(m for m in known.markers if m in said or PROBE.name not in said)


def _check_response_template(tokenizer: PreTrainedTokenizerBase) -> None:
    from transformers.utils.chat_parsing import ResponseParser

    try:
        ResponseParser(tokenizer.response_template, prefix="")
    except (ValueError, KeyError, TypeError) as error:
        msg = (
            f"The `response_template` of `{tokenizer.name_or_path}` is not one that transformers can use: {error} "
            "Correct it in tokenizer_config.json, or remove it there: calls are then read as the chat template writes "
            "them."
        )
        raise ConfigError(msg) from error


def _is_probe(call: ToolCall) -> bool:
    return call.name == PROBE.name and typed_arguments(PROBE_TOOL, call) == PROBE.arguments


def _rendered_calls(tokenizer: PreTrainedTokenizerBase, num_calls: int) -> str:
    """Return calls as the chat template writes them, without control tokens around them; nothing if it refuses."""
    chat: list[Message] = [{"role": "user", "content": "Where?", "tools": (PROBE_TOOL,)}]
    calls = [as_message_call(PROBE, i) for i in range(num_calls)]
    try:
        prompt = render(tokenizer, chat, add_generation_prompt=True)
        chat.append({"role": "assistant", "content": "", "tool_calls": calls})
        whole = render(tokenizer, chat, add_generation_prompt=False)
    except ConfigError:
        return ""
    text = whole[len(prompt) :] if whole.startswith(prompt) else whole.rpartition("Where?")[2]
    special = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    text = text.strip()
    for form in FORMS:  # tokens that belong to calls stay
        special = [token for token in special if token not in form.markers]
    while any(text.endswith(token) for token in special):
        text = text[: -max(len(token) for token in special if text.endswith(token))].strip()
    return text


def as_message_call(call: ToolCall | None, number: int, text: str = "") -> dict[str, object]:
    """Return a call as an entry of a message's `tool_calls`.

    Its id has nine letters and digits, the only form that Mistral's templates take.

    Args:
        call: The call; None for one that cannot be read.
        number: Calls of the episode before it.
        text: Of a reply whose call cannot be read, or names what is no tool's name.
    """
    name = shown_name(call)
    arguments = {"text": text} if call is None or name != call.name else dict(call.arguments)
    return {"id": call_id(number), "type": "function", "function": {"name": name, "arguments": arguments}}


def shown_name(call: ToolCall | None) -> str:
    """Return the name under which a call stands in a chat: its own, if a tool could have it."""
    return call.name if call is not None and re.fullmatch(r"[\w.:-]{1,64}", call.name, re.ASCII) else UNREADABLE


def call_id(number: int) -> str:
    """Return the id of an episode's call."""
    return f"call{number:05d}"


def structure_token_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the tokens that are no text: control tokens, and what opens and closes thoughts and calls."""
    reader, tokens = reply_reader(tokenizer), tokenizer.get_added_vocab()
    tags = {*THINK, *reader.thoughts, *TaggedJson().markers, *reader.parser.markers}
    return sorted(control_token_ids(tokenizer) | {tokens[tag] for tag in tags if tag in tokens})
