"""Tool calls in a reply: JSON between tags (Hermes, Qwen), bare JSON (Llama), or another form."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from typing_extensions import override

OPEN, CLOSE = "<tool_call>", "</tool_call>"


@dataclass(frozen=True)
class ToolCall:
    """One call: the tool's name and its arguments."""

    name: str
    arguments: Mapping[str, object]


class ToolCallParser(ABC):
    """Finds the calls in a reply; each model family has its own parser."""

    @abstractmethod
    def __call__(self, text: str) -> Sequence[ToolCall | None]:
        """Return the reply's calls in order, None for one that cannot be read; nothing if it makes none."""


@dataclass(frozen=True)
class TaggedJson(ToolCallParser):
    """Calls as `<tool_call>{"name": …, "arguments": {…}}</tool_call>`: Hermes and Qwen.

    Args:
        open_tag: Begins a call.
        close_tag: Ends it.
        is_lenient: Whether a last call that is left open counts as well.

    Example:
        >>> TaggedJson()('Let me see. <tool_call>{"name": "now"}</tool_call><tool_call>what?</tool_call>')
        [ToolCall(name='now', arguments={}), None]
    """

    open_tag: str = OPEN
    close_tag: str = CLOSE
    is_lenient: bool = False

    @override
    def __call__(self, text: str) -> list[ToolCall | None]:
        return [parse_tool_call(body) for body in self.bodies(text)]

    def bodies(self, text: str) -> list[str]:
        """Return the text between each pair of tags."""
        bodies: list[str] = []
        _, found, rest = text.partition(self.open_tag)
        while found:
            body, is_closed, rest = rest.partition(self.close_tag)
            if is_closed or self.is_lenient:
                bodies.append(body)
            _, found, rest = rest.partition(self.open_tag)
        return bodies


@dataclass(frozen=True)
class BareJson(ToolCallParser):
    """The reply itself is `{"name": …, "parameters": {…}}`, several separated by `;`: Llama 3.

    Args:
        prefix: What may stand before it.

    Example:
        >>> BareJson()('{"name": "now", "parameters": {}}; {"name": "here", "parameters": {}}')
        [ToolCall(name='now', arguments={}), ToolCall(name='here', arguments={})]
        >>> BareJson()("It is noon.")
        []
    """

    prefix: str = "<|python_tag|>"

    @override
    def __call__(self, text: str) -> list[ToolCall | None]:
        rest = text.strip().removeprefix(self.prefix).strip()
        if not rest.startswith("{"):
            return []
        calls: list[ToolCall | None] = []
        while rest:
            try:
                value, end = _DECODER.raw_decode(rest)
            except (ValueError, RecursionError):
                return [*calls, None]
            calls.append(_as_call(value, "parameters"))
            rest = rest[end:].lstrip(" \t\r\n;")
        return calls


def call_bodies(text: str) -> list[str]:
    """Return the text between each pair of tool-call tags."""
    return TaggedJson().bodies(text)


def parse_tool_call(body: str) -> ToolCall | None:
    """Return the call that a body describes, or None if it is not `{"name": str, "arguments": {...}}`.

    A call without arguments may leave them out. A repeated key and NaN are errors.
    """
    try:
        return _as_call(_DECODER.decode(body), "arguments")
    except (ValueError, RecursionError):
        return None


def only_call(text: str) -> ToolCall | None:
    """Return the reply's tool call if it makes exactly one and it is well-formed, else None."""
    bodies = call_bodies(text)
    if len(bodies) != 1 or text.count(OPEN) != 1 or text.count(CLOSE) != 1:
        return None
    return parse_tool_call(bodies[0])


def render_tool_call(name: str, arguments: Mapping[str, object]) -> str:
    """Return a call in the expert's form: tagged JSON without spaces."""
    call = json.dumps({"name": name, "arguments": dict(arguments)}, separators=(",", ":"), ensure_ascii=False)
    return f"{OPEN}{call}{CLOSE}"


def _as_call(value: object, arguments_key: str) -> ToolCall | None:
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        return None
    arguments = value.get(arguments_key, {})
    return ToolCall(value["name"], arguments) if isinstance(arguments, dict) else None


def _without_repeats(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Refuse a repeated key: which value counts would depend on the parser."""
    value = dict(pairs)
    if len(value) != len(pairs):
        msg = f"keys repeat in {[key for key, _ in pairs]}"
        raise ValueError(msg)
    return value


def _refuse(constant: str) -> object:
    msg = f"{constant} is not JSON"
    raise ValueError(msg)


_DECODER = json.JSONDecoder(object_pairs_hook=_without_repeats, parse_constant=_refuse)
