"""Chats from data sets whose messages call tools, in the one form that chat templates take."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import count

from lightning_opd.errors import ConfigError
from lightning_opd.tokenization.replies import call_id
from lightning_opd.tokenization.tool_calls import DECODER, arguments_of
from lightning_opd.types import TEMPLATE_SETTINGS, Message

_ID = re.compile(r"[A-Za-z0-9]{9}", re.ASCII)
"""The only form of an id that Mistral's templates take."""


def with_tool_calls(messages: Sequence[Message]) -> tuple[Message, ...]:
    """Return a chat whose tool calls have ids, and arguments as mappings, and whose tool messages name their call.

    Arguments as JSON text are read once. Ids that not every template takes get others, in calls and answers alike.
    Messages without calls stay as they are.

    Args:
        messages: A chat.

    Raises:
        ConfigError: A call cannot be read, or a tool answers a call that nobody made.

    Example:
        >>> call = {"function": {"name": "now", "arguments": '{"zone": "UTC"}'}}
        >>> with_tool_calls([{"role": "assistant", "content": None, "tool_calls": [call]}])[0]["tool_calls"]
        [{'id': 'call00000', 'type': 'function', 'function': {'name': 'now', 'arguments': {'zone': 'UTC'}}}]
    """
    calls_of = (_list(message.get("tool_calls"), "tool_calls") for message in messages)
    taken = {call.get("id") for calls in calls_of for call in calls if isinstance(call, Mapping)}
    free = (own for own in map(call_id, count()) if own not in taken)
    new_ids: dict[object, str] = {}
    names: dict[str, str] = {}
    waiting: list[str] = []
    chat: list[Message] = []
    for message in messages:
        if "tool_calls" in message:
            calls = [_call(call, free) for call in _list(message["tool_calls"], "tool_calls")]
            kept = {key: value for key, value in message.items() if key != "tool_calls"}
            kept["content"] = "" if message.get("content") is None else message["content"]
            chat.append({**kept, "tool_calls": [call for _, call, _ in calls]} if calls else kept)
            names |= {str(call["id"]): name for _, call, name in calls}
            new_ids |= {old: str(call["id"]) for old, call, _ in calls if old is not None}
            waiting = [str(call["id"]) for _, call, _ in calls]
        elif message.get("role") == "tool" and names:
            chat.append(_answer(message, new_ids, names, waiting))
        else:
            chat.append(message)
    return tuple(chat)


def _call(call: object, free: Iterator[str]) -> tuple[object, dict[str, object], str]:
    """Return a call's own id, the call in the one form, and its tool's name."""
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(call, Mapping) or not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        msg = f'expected a tool call as {{"function": {{"name": …, "arguments": …}}}}, got {call!r}. Correct it.'
        raise ConfigError(msg)
    given = function.get("arguments")
    arguments = {} if given is None or given == "" else arguments_of(given)
    if arguments is None:
        msg = f"expected the `arguments` of `{function['name']}` as a mapping, or as JSON of one, got {given!r}."
        raise ConfigError(msg)
    own = call.get("id")
    kept = own if isinstance(own, str) and _ID.fullmatch(own) else next(free)
    named: dict[str, object] = {"name": function["name"], "arguments": arguments}
    return own, {"id": kept, "type": "function", "function": named}, str(function["name"])


def _answer(
    message: Message, new_ids: Mapping[object, str], names: Mapping[str, str], waiting: list[str]
) -> dict[str, object]:
    """Return a tool's message with the id and the name of the call that it answers."""
    own = message.get("tool_call_id")
    answered = new_ids.get(own) if own is not None else next(iter(waiting), None)
    if answered is None:
        made = sorted(str(key) for key in new_ids)
        msg = f"a message of role `tool` answers the call {own!r}, which nobody made; the calls are {made}."
        raise ConfigError(msg)
    if answered in waiting:
        waiting.remove(answered)
    name = message.get("name") or names[answered]
    return {**message, "tool_call_id": answered, "name": name}


def with_tools(messages: tuple[Message, ...], tools: object) -> tuple[Message, ...]:
    """Return a chat whose first message carries the JSON schemas of its tools.

    Args:
        messages: A chat.
        tools: A list of schemas, or JSON of one; a function alone is put into `{"type": "function", "function": …}`.

    Raises:
        ConfigError: They are something else.
    """
    schemas = [_schema(tool) for tool in _list(tools, "tools")]
    return ({**messages[0], "tools": schemas}, *messages[1:]) if schemas else messages


def with_template_settings(messages: tuple[Message, ...], settings: object) -> tuple[Message, ...]:
    """Return a chat whose first message carries settings of the chat template for this chat alone.

    Args:
        messages: A chat.
        settings: Name → value, or None.

    Raises:
        ConfigError: They are something else.
    """
    if settings is None:
        return messages
    if not isinstance(settings, Mapping):
        msg = f"expected `{TEMPLATE_SETTINGS}` as a mapping such as {{'enable_thinking': false}}, got {settings!r}."
        raise ConfigError(msg)
    return ({**messages[0], TEMPLATE_SETTINGS: settings}, *messages[1:])


def _schema(tool: object) -> Mapping[str, object]:
    function = tool.get("function", tool) if isinstance(tool, Mapping) else None
    if not isinstance(tool, Mapping) or not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        msg = f'expected `tools` as a list of {{"type": "function", "function": {{"name": …}}}}, got {tool!r}.'
        raise ConfigError(msg)
    return tool if "function" in tool else {"type": "function", "function": tool}


def _list(value: object, name: str) -> Sequence[object]:
    """Return a list that a row holds as it is, as JSON, or not at all."""
    if value is None or value == "":
        return ()
    if isinstance(value, str):
        with contextlib.suppress(ValueError, RecursionError):
            value = DECODER.decode(value)
    if not isinstance(value, list | tuple):
        msg = f"expected `{name}` as a list, or as JSON of one, got {value!r}."
        raise ConfigError(msg)
    return value
