"""Messages to token ids and back, always through the tokenizer's own chat template."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

from lightning_opd.errors import ConfigError
from lightning_opd.tokenization.rendering import encode, render
from lightning_opd.tokenization.turn_borders import (
    STAND_IN,
    closing_token_id,
    common_beginning,
    stand_in_reply,
    token_text,
)
from lightning_opd.types import Message, Messages

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def render_prompt(tokenizer: PreTrainedTokenizerBase, messages: Messages) -> list[int]:
    """Return the tokens before a reply: the chat and an opened assistant turn."""
    return encode(tokenizer, render(tokenizer, messages, add_generation_prompt=True))


def render_answer(
    tokenizer: PreTrainedTokenizerBase,
    messages: Messages,
    answer: Messages,
    last_token_id: int | None = None,
    reply: Message | None = None,
) -> list[int]:
    """Return the tokens between a reply and the next one: the template's own.

    The token with which the template closes a turn is left out where the reply already ends with it, and only there.

    The chat is rendered with placeholders for the student's replies, and the text after the last placeholder
    is returned. So the student's replies are never rendered (their tokens stay as sampled), and a template that
    rewrites earlier replies, for example without their thoughts, cannot change them.

    Args:
        tokenizer: Whose template to use.
        messages: The chat before the reply that is answered.
        answer: The environment's answer to that reply.
        last_token_id: Last token of the reply; None for one that ends like the template's turns.
        reply: The reply as a message, for templates that need its `tool_calls` to render the answer.

    Raises:
        ValueError: The template does not show assistant messages verbatim.
    """
    stand_in, everything = STAND_IN, str((messages, answer, reply))
    while stand_in in everything:
        stand_in += "_"
    earlier = [{**m, "content": stand_in} if m.get("role") == "assistant" else m for m in messages]
    chat = (*earlier, stand_in_reply(reply, stand_in))
    _, found, rest = render(tokenizer, (*chat, *answer), add_generation_prompt=True).rpartition(stand_in)
    if not found:
        msg = "The chat template does not show an assistant's words or tool calls, so no answer can follow them."
        raise ConfigError(msg)
    _, _, ending = render(tokenizer, chat, add_generation_prompt=False).rpartition(stand_in)
    ending = common_beginning(tokenizer, rest, ending)  # what still belongs to the reply
    for stop in (closing_token_id(tokenizer), last_token_id):
        before, has_stop, _ = ending.rpartition(token_text(tokenizer, stop)) if stop is not None else ("", "", "")
        if has_stop:
            token_ids = encode(tokenizer, rest[len(before) :])
            return token_ids[1:] if last_token_id in {None, stop} else token_ids
    token_ids = encode(tokenizer, rest[len(ending) :])
    return token_ids[1:] if token_ids[:1] == [last_token_id] else token_ids  # it ended with the next turn's first token


def decode_response(tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int], stop_token_ids: Sequence[int]) -> str:
    """Return a response's text without its stop token; other special tokens stay visible."""
    kept = token_ids[:-1] if token_ids and token_ids[-1] in stop_token_ids else token_ids
    return cast("str", tokenizer.decode(list(kept), skip_special_tokens=False, clean_up_tokenization_spaces=False))
