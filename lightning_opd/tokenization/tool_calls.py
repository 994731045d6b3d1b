"""Tool calls in a reply: the Hermes and Qwen form, JSON between tags."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

OPEN, CLOSE = "<tool_call>", "</tool_call>"
_CALL = re.compile(re.escape(OPEN) + "(.*?)" + re.escape(CLOSE), re.DOTALL)


@dataclass(frozen=True)
class ToolCall:
    """One call: the tool's name and its arguments."""

    name: str
    arguments: Mapping[str, object]


def call_bodies(text: str) -> list[str]:
    """Return what stands between each pair of tool-call tags."""
    return _CALL.findall(text)


def parse_tool_call(body: str) -> ToolCall | None:
    """Return the call that a body describes, or None if it is not `{"name": str, "arguments": {...}}`.

    A call without arguments may leave them out. A key given twice, and NaN, are no JSON here.
    """
    try:
        value = json.loads(body, object_pairs_hook=_without_repeats, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        return None
    arguments = value.get("arguments", {})
    return ToolCall(value["name"], arguments) if isinstance(arguments, dict) else None


def _without_repeats(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Refuse a key given twice: which value counts would depend on the parser."""
    value = dict(pairs)
    if len(value) != len(pairs):
        msg = f"keys repeat in {[key for key, _ in pairs]}"
        raise ValueError(msg)
    return value


def _refuse(constant: str) -> object:
    msg = f"{constant} is not JSON"
    raise ValueError(msg)


def only_call(text: str) -> ToolCall | None:
    """Return the reply's tool call if it makes exactly one and makes it well, else None."""
    bodies = call_bodies(text)
    if len(bodies) != 1 or text.count(OPEN) != 1 or text.count(CLOSE) != 1:
        return None
    return parse_tool_call(bodies[0])
