"""Tool calls in a reply: JSON between tags (Hermes, Qwen), bare JSON (Llama), or another form."""

from __future__ import annotations

import json
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from typing_extensions import override

from lightning_opd.tokenization.thoughts import split_thoughts, until

OPEN, CLOSE = "<tool_call>", "</tool_call>"

MAX_DEPTH = 32
"""Deepest nesting of a call's arguments."""

_ARGUMENTS = frozenset({"arguments", "parameters"})
_KEYS = _ARGUMENTS | {"name", "id", "type"}
"""What a call as JSON may hold; another key is an argument in the wrong place, or no call at all."""

_SEPARATORS = r"[ \t\r\n;]*"
_BEGINS_CALL = re.compile(r'\{\s*"(?:name"|function"|type"\s*:\s*"function")')


@dataclass(frozen=True)
class ToolCall:
    """One call: the tool's name and its arguments.

    Args:
        name: Of the tool.
        arguments: By name.
        plain: Arguments that the reply gives as plain text, so that only the tool's schema tells their types.
    """

    name: str
    arguments: Mapping[str, object]
    plain: tuple[str, ...] = field(default=(), repr=False, compare=False)


class ToolCallParser(ABC):
    """Finds the calls in a reply; each model family has its own parser."""

    @property
    def tags(self) -> tuple[str, str] | None:
        """What opens and closes each call, where both exist."""
        return None

    @property
    def final_tag(self) -> str | None:
        """What ends the last call of a reply, where such a tag exists."""
        return None if self.tags is None else self.tags[1]

    @property
    def markers(self) -> tuple[str, ...]:
        """Control tokens that belong to calls of this form."""
        return self.tags or ()

    @abstractmethod
    def __call__(self, text: str) -> Sequence[ToolCall | None]:
        """Return the reply's calls in order, None for one that cannot be read; nothing if it makes none."""

    def content(self, text: str) -> str:
        """Return what a reply with calls says besides them; nothing by default."""
        return ""


@dataclass(frozen=True)
class TaggedCalls(ToolCallParser):
    """Calls between tags, whose bodies `read_body` reads.

    Args:
        open_tag: Begins a call.
        close_tag: Ends it.
        is_lenient: Whether a last call that is left open counts as well.
    """

    open_tag: str = OPEN
    close_tag: str = CLOSE
    is_lenient: bool = False

    @abstractmethod
    def read_body(self, body: str) -> ToolCall | None:
        """Return the call between two tags, or None if it cannot be read."""

    @override
    def __call__(self, text: str) -> list[ToolCall | None]:
        return [self.read_body(body) for body in self.bodies(text)]

    @property
    @override
    def tags(self) -> tuple[str, str]:
        return self.open_tag, self.close_tag

    def bodies(self, text: str) -> list[str]:
        """Return the text between each pair of tags."""
        return self._parts(text)[1]

    @override
    def content(self, text: str) -> str:
        return "".join(self._parts(text)[0]).strip()

    def _parts(self, text: str) -> tuple[list[str], list[str]]:
        """Return the text outside of calls and the calls' bodies."""
        outside, bodies, start, found = [], [], 0, True
        while found:
            before, found, start = until(text, self.open_tag, start)
            outside.append(before)
            if found:
                body, is_closed, start = until(text, self.close_tag, start)
                bodies += [body] if is_closed or self.is_lenient else []
        return outside, bodies


@dataclass(frozen=True)
class TaggedJson(TaggedCalls):
    """Calls as `<tool_call>{"name": …, "arguments": {…}}</tool_call>`: Hermes and Qwen.

    Args:
        open_tag: Begins a call.
        close_tag: Ends it.
        is_lenient: Whether a last call that is left open counts as well.

    Example:
        >>> TaggedJson()('Let me see. <tool_call>{"name": "now"}</tool_call><tool_call>what?</tool_call>')
        [ToolCall(name='now', arguments={}), None]
    """

    @override
    def read_body(self, body: str) -> ToolCall | None:
        return parse_tool_call(body)


@dataclass(frozen=True)
class BareJson(ToolCallParser):
    """The reply itself is `{"name": …, "parameters": {…}}`, several separated by `;`: Llama 3.

    Other JSON, such as `{"answer": 42}`, is no call.

    Args:
        prefix: What may stand before each; nothing but a call stands after it.

    Example:
        >>> BareJson()('{"name": "now", "parameters": {}}; {"name": "here", "parameters": {}}')
        [ToolCall(name='now', arguments={}), ToolCall(name='here', arguments={})]
        >>> BareJson()("It is noon."), BareJson()('{"answer": 42}')
        ([], [])
    """

    prefix: str = "<|python_tag|>"

    @property
    @override
    def markers(self) -> tuple[str, ...]:
        return (self.prefix,)

    @override
    def __call__(self, text: str) -> list[ToolCall | None]:
        rest = text.strip()
        is_meant = bool(self.prefix) and rest.startswith(self.prefix)
        rest = rest.removeprefix(self.prefix).strip()
        if not is_meant and not _BEGINS_CALL.match(rest):
            return []
        calls: list[ToolCall | None] = []
        start, between = 0, re.compile(rf"{_SEPARATORS}(?:{re.escape(self.prefix)}\s*)?")
        while start < len(rest):
            try:
                value, end = DECODER.raw_decode(rest, start)
            except (ValueError, RecursionError):
                return [*calls, None]
            if not calls and not is_meant and not _is_meant_as_call(value):
                return []
            calls.append(call_from_json(value))
            start = between.match(rest, end).end()  # type: ignore[union-attr]  # it matches nothing, too
        return calls or [None]


def call_bodies(text: str) -> list[str]:
    """Return the text between each pair of tool-call tags."""
    return TaggedJson().bodies(text)


def parse_tool_call(body: str) -> ToolCall | None:
    """Return the call that a body describes, or None if it is not `{"name": str, "arguments": {...}}`.

    A call without arguments may leave them out. A repeated key and NaN are errors.
    """
    try:
        return call_from_json(DECODER.decode(body))
    except (ValueError, RecursionError):
        return None


def only_call(text: str) -> ToolCall | None:
    """Return the reply's tool call if it makes exactly one and it is well-formed, else None.

    Calls inside a thought are none.
    """
    _, said = split_thoughts(text)
    bodies = call_bodies(said)
    if len(bodies) != 1 or said.count(OPEN) != 1 or said.count(CLOSE) != 1:
        return None
    return parse_tool_call(bodies[0])


def render_tool_call(name: str, arguments: Mapping[str, object]) -> str:
    """Return a call in the expert's form: tagged JSON without spaces."""
    call = json.dumps({"name": name, "arguments": dict(arguments)}, separators=(",", ":"), ensure_ascii=False)
    return f"{OPEN}{call}{CLOSE}"


def call_from_json(value: object) -> ToolCall | None:
    """Return the call that a JSON value describes, or None.

    Arguments that are not where they belong are never left out: such a call cannot be read. Arguments given as JSON
    text are read once.
    """
    if isinstance(value, dict) and isinstance(value.get("function"), dict):
        if not value.keys() <= {"function", *_KEYS} - _ARGUMENTS:
            return None
        value = value["function"]
    if not isinstance(value, dict) or not isinstance(value.get("name"), str) or not value.keys() <= _KEYS:
        return None
    if "arguments" in value and "parameters" in value:
        return None
    arguments = arguments_of(value.get("arguments", value.get("parameters", {})))
    return None if arguments is None else ToolCall(value["name"], arguments)


def arguments_of(value: object) -> dict[str, object] | None:
    """Return a call's arguments as a mapping, from a mapping or from JSON text, or None.

    Arguments nested deeper than `MAX_DEPTH` are None: no tool takes them, and chat templates could not show them.
    """
    if isinstance(value, str):
        try:
            value = DECODER.decode(value)
        except (ValueError, RecursionError):
            return None
    return dict(value) if isinstance(value, Mapping) and _is_shallow(value, MAX_DEPTH) else None


def _is_shallow(value: object, depth: int) -> bool:
    if isinstance(value, Mapping):
        value = list(value.values())
    return not isinstance(value, list) or (depth > 0 and all(_is_shallow(inner, depth - 1) for inner in value))


def _is_meant_as_call(value: object) -> bool:
    inner = value.get("function") if isinstance(value, dict) else None
    call = inner if isinstance(inner, dict) else value
    if not isinstance(call, dict) or not isinstance(call.get("name"), str):
        return False
    return bool(call.keys() & _ARGUMENTS) or call is inner


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


def _finite(number: str) -> float:
    value = float(number)
    if not math.isfinite(value):
        _refuse(number)
    return value


DECODER = json.JSONDecoder(object_pairs_hook=_without_repeats, parse_constant=_refuse, parse_float=_finite)
"""Reads JSON strictly."""
