"""A chat as its template's text, and that text as tokens: the one place where templates are called."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from jinja2 import TemplateError

from lightning_opd.errors import ConfigError
from lightning_opd.tokenization.compatibility import missing_template
from lightning_opd.tokenization.template_cache import by_template
from lightning_opd.types import CONTROL_TOKENS, TEMPLATE_SETTINGS, Message, Messages

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TODAY = {
    **{
        "%d": "26",
        "%-d": "26",
        "%e": "26",
        "%m": "07",
        "%-m": "7",
        "%b": "Jul",
        "%B": "July",
        "%Y": "2024",
        "%y": "24",
    },
    **{"%A": "Friday", "%a": "Fri", "%j": "208", "%F": "2024-07-26", "%D": "07/26/24", "%x": "07/26/24"},
    **{"%H": "12", "%-H": "12", "%I": "12", "%-I": "12", "%M": "00", "%S": "00", "%p": "PM", "%T": "12:00:00"},
    **{"%R": "12:00", "%X": "12:00:00", "%Z": "UTC", "%z": "+0000"},
}
"""What templates take for now, so that a run does not change at midnight: Llama 3's own default day, at noon."""

OF_THE_CHAT = frozenset({"tools", TEMPLATE_SETTINGS})
"""What a chat's first message carries for the whole chat."""

_MARKS = ("\U000f0000", "\U000f0001")  # private characters around a control token that is only text


def render(tokenizer: PreTrainedTokenizerBase, messages: Messages, *, add_generation_prompt: bool) -> str:
    """Return the text of a chat, in which what only looks like a control token is marked for `encode`.

    The template's settings are those of the tokenizer (`load_tokenizer`) and, before them, those of the chat's first
    message. Templates that ask for the date are told a fixed one.

    Raises:
        ConfigError: There is no template, or a message is not what templates can show.
    """
    if not tokenizer.chat_template:
        raise ConfigError(missing_template(tokenizer))
    first = messages[0] if messages else {}
    settings = {
        **cast("Mapping[str, object]", tokenizer.init_kwargs.get(TEMPLATE_SETTINGS) or {}),
        **cast("Mapping[str, object]", first.get(TEMPLATE_SETTINGS) or {}),
    }
    chat = [_shown(tokenizer, message) for message in messages]
    if any(message.get("tool_calls") for message in chat) and _pastes_arguments(tokenizer):
        chat = [_with_arguments(message, json.dumps) for message in chat]
    if _shows_parts_only(tokenizer):
        chat = [{**message, "content": [{"type": "text", "text": message["content"]}]} for message in chat]
    tools = cast("Sequence[object] | None", first.get("tools"))
    try:
        return _apply(tokenizer, chat, add_generation_prompt, settings, list(tools) if tools else None)
    except (TemplateError, TypeError) as error:
        roles = [message.get("role") for message in messages]
        msg = (
            f"The chat template of `{tokenizer.name_or_path}` refuses messages of roles {roles}: {error}. Give it a "
            "template that renders them (chat_template.jinja beside the tokenizer), or leave such prompts out."
        )
        raise ConfigError(msg) from error


def encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Return the tokens of text from `render`, or of a part of it."""
    # half an emoji (a lone surrogate, which JSON can carry) is no text to any tokenizer
    text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    start, end = _MARKS
    pieces = re.split(f"{start}(.*?){end}", text, flags=re.DOTALL)  # every second one is text that looks like a token
    token_ids = cast("list[int]", tokenizer.encode(pieces[0], add_special_tokens=False))
    for index, piece in enumerate(pieces[1:], start=1):
        token_ids += _as_text(tokenizer, piece) if index % 2 else _inside(tokenizer, piece)
    return token_ids


def message_error(message: Mapping[str, object]) -> str | None:
    """Return what makes a message one that no template shows rightly, or None.

    Example:
        >>> message_error({"role": "user", "content": 7})
        '`content` must be a text, a list of text parts or null, got int'
    """
    content = message.get("content")
    if content is None or isinstance(content, str):
        return None
    if not isinstance(content, list | tuple):
        return f"`content` must be a text, a list of text parts or null, got {type(content).__name__}"
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
        if not isinstance(part, Mapping) or not isinstance(part.get("text"), str) or kind not in (None, "text"):
            return f"`content` has a part of type {kind!r}; only text parts can be rendered"
    return None


def control_token_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Return the added tokens that are no text: the special ones, and those that the chat template writes."""
    template = str(tokenizer.chat_template or "")
    return frozenset(
        token_id
        for token_id, token in tokenizer.added_tokens_decoder.items()
        if token.special or (token.content.strip() and token.content in template)
    )


@by_template
def control_pattern(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str]:
    """Return a pattern that finds a tokenizer's control tokens in text, the longest first."""
    tokens = sorted((str(tokenizer.convert_ids_to_tokens(i)) for i in control_token_ids(tokenizer)), key=len)
    return re.compile("|".join(re.escape(token) for token in reversed(tokens)) or "(?!)")


def _shown(tokenizer: PreTrainedTokenizerBase, message: Message) -> dict[str, object]:
    """Return a message as templates expect it: text content, arguments as mappings, no control token in data."""
    error = message_error(message)
    if error:
        msg = f"A message of role `{message.get('role')}` cannot be rendered: {error}."
        raise ConfigError(msg)
    content = message.get("content")
    if not isinstance(content, str):
        content = "".join(part["text"] for part in cast("Sequence[Mapping[str, str]]", content or ()))
    if message.get("role") in {"user", "tool"}:
        content = _marked(tokenizer, content, str(message["role"]))
    shown = {key: value for key, value in message.items() if key not in OF_THE_CHAT} | {"content": content}
    return _with_arguments(shown, _parsed)


def _with_arguments(message: dict[str, object], change: Callable[[object], object]) -> dict[str, object]:
    calls = cast("Sequence[Mapping[str, object]] | None", message.get("tool_calls"))
    if not calls:
        return message
    changed = []
    for call in calls:
        function = cast("Mapping[str, object]", call.get("function", call))
        inner = {**function, "arguments": change(function.get("arguments", {}))}
        changed.append({**call, "function": inner} if "function" in call else inner)
    return {**message, "tool_calls": changed}


def _parsed(arguments: object) -> object:
    """Return a call's arguments as a mapping: data often holds them as JSON, which templates would encode again."""
    if not isinstance(arguments, str):
        return arguments
    try:
        return json.loads(arguments or "{}")
    except ValueError as error:
        msg = f"The `arguments` of a tool call must be a mapping or JSON, got {arguments[:60]!r} ({error})."
        raise ConfigError(msg) from error


@by_template
def _pastes_arguments(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether the template pastes a call's arguments as they are: then they must be JSON already."""
    call = {"id": "000000000", "type": "function", "function": {"name": "probe", "arguments": {"key": "value"}}}
    chat: list[dict[str, object]] = [
        {"role": "user", "content": "?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
    ]
    try:
        return "{'key'" in _apply(tokenizer, chat, False, {}, None)
    except TypeError:  # a text and a mapping cannot be joined
        return True
    except TemplateError:
        return False


@by_template
def _shows_parts_only(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether the template shows content only as a list of parts, as those of models that see images do."""

    def shows(content: object) -> bool:
        try:
            return "probe" in _apply(tokenizer, [{"role": "user", "content": content}], False, {}, None)
        except (TemplateError, TypeError):
            return False

    return not shows("probe") and shows([{"type": "text", "text": "probe"}])


def _apply(
    tokenizer: PreTrainedTokenizerBase,
    chat: list[dict[str, object]],
    add_generation_prompt: bool,
    settings: Mapping[str, object],
    tools: list[object] | None,
) -> str:
    template = tokenizer.get_chat_template(None, cast("Any", tools))
    if "strftime_now" in template:  # the clock, which a template's own macro hides
        form = "".join(f" | replace('{name}', '{value}')" for name, value in TODAY.items())
        template = f"{{% macro strftime_now(form) %}}{{{{ form{form} }}}}{{% endmacro %}}{template}"
    arguments: dict[str, Any] = dict(settings)
    rendered = tokenizer.apply_chat_template(
        cast("list[dict[str, str]]", chat),
        tools=cast("Any", tools),
        chat_template=template,
        tokenize=False,
        add_generation_prompt=add_generation_prompt,
        **arguments,
    )
    return cast("str", rendered)


def _marked(tokenizer: PreTrainedTokenizerBase, text: str, role: str) -> str:
    """Mark, refuse or keep the control tokens that a text spells out, as the tokenizer's setting says."""
    setting = tokenizer.init_kwargs.get(CONTROL_TOKENS) or "text"
    pattern = control_pattern(tokenizer)
    found = pattern.search(text) if setting != "keep" else None
    if found is None:
        return text
    if setting == "refuse":
        msg = (
            f"A message of role `{role}` spells out the control token `{found[0]}`, and `control_tokens_in_text` is "
            "`refuse`. Remove it from the data, or choose `text`, which tokenises it as ordinary text."
        )
        raise ConfigError(msg)
    start, end = _MARKS
    return pattern.sub(lambda token: f"{start}{token[0]}{end}", re.sub(f"[{start}{end}]", "", text))


def _inside(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Return the tokens of a text that stands inside another: without a space of the tokenizer's own before it."""

    def ids_of(text: str) -> list[int]:
        return cast("list[int]", tokenizer.encode(text, add_special_tokens=False))

    return _after(ids_of, text)


def _after(ids_of: Callable[[str], list[int]], text: str) -> list[int]:
    """Return the tokens of a text behind another character, one that its beginning does not merge with."""
    if not text:
        return []
    for before in ("\n", "a", ".", "0"):  # line breaks merge with line breaks, letters with letters
        ids, own = ids_of(before + text), ids_of(before)
        if ids[: len(own)] == own:
            return ids[len(own) :]
    return ids_of(text)


def _as_text(tokenizer: PreTrainedTokenizerBase, token: str) -> list[int]:
    """Return the tokens of a control token's name as ordinary text."""
    backend = tokenizer.backend_tokenizer

    def ids_of(text: str) -> list[int]:
        text = backend.normalizer.normalize_str(text) if backend.normalizer else text
        words = backend.pre_tokenizer.pre_tokenize_str(text) if backend.pre_tokenizer else [(text, (0, 0))]
        return [token.id for word, _ in words for token in backend.model.tokenize(word)]

    return _after(ids_of, token)
