"""A row's messages in the one form that chat templates take, or what is wrong with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, cast

from lightning_opd.errors import ConfigError, closest
from lightning_opd.tokenization.rendering import OF_THE_CHAT, message_error
from lightning_opd.tokenization.tool_calls import DECODER
from lightning_opd.tokenization.tool_messages import with_template_settings, with_tool_calls, with_tools
from lightning_opd.types import Message

ROLES: Final = ("system", "developer", "user", "assistant", "tool")
"""Who speaks in a message."""
OTHER_ROLES: Mapping[str, str] = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "ai": "assistant",
    "model": "assistant",
    "function": "tool",
    "observation": "tool",
}
"""The names that other data sets give to the roles."""


def chat_of(value: object, place: str, name: str) -> list[Message]:
    """Return messages, each with a known role and a content that can be shown.

    Messages in ShareGPT's form (`from`, `value`) get the keys `role` and `content`.

    Args:
        value: A list of messages, or JSON of one.
        place: File and line.
        name: The column, for messages.

    Raises:
        ConfigError: They are something else.
    """
    chat = parsed(value, place, name)
    if not isinstance(chat, Sequence) or isinstance(chat, str | bytes) or not chat:
        got = "an empty list" if chat == [] else type(chat).__name__
        msg = f"{place}: expected `{name}` as a list of messages with role and content, got {got}. Correct the row."
        raise ConfigError(msg)
    if all(is_sharegpt(message) for message in chat):
        chat = [_from_sharegpt(message) for message in chat]
    for message in chat:
        _check(message, place)
    if chat[0]["role"] == "assistant":
        msg = f"{place}: `{name}` must begin with the user or the system, got the assistant first."
        raise ConfigError(msg)
    roles = [str(message["role"]) for message in chat]
    if "user" not in roles:
        msg = f"{place}: expected a user's message in `{name}`, got {', '.join(roles[:4])} only. Add what is asked."
        raise ConfigError(msg)
    return list(chat)


def is_sharegpt(message: object) -> bool:
    """Return whether a message has ShareGPT's keys."""
    return isinstance(message, Mapping) and {"from", "value"} <= message.keys() and "role" not in message


def parsed(value: object, place: str, name: str) -> object:
    """Return a column's list or mapping, which CSV files and tables often hold as JSON.

    Raises:
        ConfigError: It is a text that is no JSON.
    """
    if not isinstance(value, str):
        return value
    try:
        return DECODER.decode(value)
    except (ValueError, RecursionError) as error:
        is_python = value.lstrip().startswith(("[{'", "{'"))
        repeats = f" ({error})" if "repeat" in str(error) else ""
        cure = "Write it by `json.dumps`, not by `str`." if is_python else "Correct the row."
        msg = f"{place}: expected `{name}` as a list or as JSON of one, got {value[:60]!r}{repeats}. {cure}"
        raise ConfigError(msg) from None


def with_system(chat: tuple[Message, ...], text: str) -> tuple[Message, ...]:
    """Return a chat that begins with a system message; one that has its own keeps it."""
    first = chat[0]
    if first["role"] in ("system", "developer"):
        return chat
    of_chat = {key: first[key] for key in OF_THE_CHAT if key in first}
    rest = {key: value for key, value in first.items() if key not in OF_THE_CHAT}
    return ({"role": "system", "content": text, **of_chat}, rest, *chat[1:])


def text_of(message: Message) -> str | None:
    """Return a message's content, of whose parts there may be several, as one text."""
    content = message.get("content")
    if content is None or isinstance(content, str):
        return content
    return "".join(str(part["text"]) for part in cast("Sequence[Mapping[str, object]]", content))


def prepared(chat: Sequence[Message], tools: object, settings: object, place: str) -> tuple[Message, ...]:
    """Return a chat with tool calls in the one form, and with its tools and template settings on the first message."""
    try:
        return with_template_settings(with_tools(with_tool_calls(chat), tools), settings)
    except ConfigError as error:
        msg = f"{place}: {error}"
        raise ConfigError(msg) from None


def _check(message: object, place: str) -> None:
    optional = {"content"} if isinstance(message, Mapping) and message.get("tool_calls") else set()
    if not isinstance(message, Mapping) or not {"role", "content"} - optional <= message.keys():
        msg = f"{place}: every message needs `role` and `content`, got {str(message)[:120]}."
        raise ConfigError(msg)
    role = message["role"]
    if role not in ROLES:
        best = OTHER_ROLES.get(str(role).lower()) or closest(str(role).lower(), ROLES)
        hint = f" Did you mean `{best}`?" if best else ""
        got = f"a message has the role {str(role)[:40]!r}, which is none of {list(ROLES)}"
        msg = f"{place}: {got}.{hint} Correct the row."
        raise ConfigError(msg)
    error = message_error(message)
    if error:
        msg = f"{place}: {error}. Correct the line."
        raise ConfigError(msg)


def _from_sharegpt(message: object) -> Message:
    given = cast("Message", message)
    role = str(given["from"])
    rest = {key: value for key, value in given.items() if key not in ("from", "value")}
    return {"role": OTHER_ROLES.get(role.lower(), role), "content": given["value"], **rest}
