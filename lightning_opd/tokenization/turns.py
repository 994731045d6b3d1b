"""Whole chats turn by turn: demonstrations to learn from, and episodes beside what a template shows of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, cast

from lightning_opd.errors import ConfigError
from lightning_opd.tokenization.chat import render_answer, render_prompt
from lightning_opd.tokenization.rendering import encode, render
from lightning_opd.tokenization.thoughts import Tags, opens_thought, thought_tags
from lightning_opd.tokenization.turn_borders import (
    closing_token_id,
    reply_surroundings,
    token_text,
    turn_ending_ids,
)
from lightning_opd.types import Message, Messages

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def render_demonstration(tokenizer: PreTrainedTokenizerBase, messages: Messages) -> tuple[list[int], list[bool]]:
    """Return a whole chat's tokens and a mask that is True on the replies to learn, stop tokens included.

    Those are the last reply and, if tools were called, the calls before it: all turns
    of an agent's episode. The tokens are laid out as in an episode: the prompt's are those of
    `render_prompt`, those between replies are `render_answer`'s, and a reply is tokenised apart, as it
    is when the student generates it. A template that does not end a turn with the stop token gets it
    appended, so that the student learns to stop.

    Raises:
        ValueError: The last message is not the assistant's, or the template does not show a reply
            directly after the generation prompt.
    """
    if not messages or messages[-1].get("role") != "assistant":
        role = messages[-1].get("role") if messages else "no message"
        msg = f"A demonstration must end with a message of role `assistant`, got {role}."
        raise ConfigError(msg)
    replies = _replies([message.get("role") for message in messages])
    return _laid_out(tokenizer, messages, replies, is_generated=False)


def _laid_out(
    tokenizer: PreTrainedTokenizerBase, messages: Messages, replies: Sequence[int], *, is_generated: bool
) -> tuple[list[int], list[bool]]:
    """Return a chat's tokens turn by turn, as an episode has them, and a mask that is True on the given replies."""
    token_ids = render_prompt(tokenizer, messages[: replies[0]])
    mask = [False] * len(token_ids)
    for reply, following in zip(replies, [*replies[1:], len(messages)], strict=True):
        reply_ids, answer_ids = _reply(tokenizer, messages[: reply + 1], is_generated=is_generated), []
        if reply + 1 < following:
            answer = messages[reply + 1 : following]
            answer_ids = render_answer(tokenizer, messages[:reply], answer, reply_ids[-1], messages[reply])
            if closing_token_id(tokenizer) is None and answer_ids[0] in tokenizer.added_tokens_decoder:
                reply_ids[-1] = answer_ids.pop(0)  # where nothing closes a turn, the next one's first token ends it
        token_ids += reply_ids + answer_ids
        mask += [True] * len(reply_ids) + [False] * len(answer_ids)
    return token_ids, mask


def episode_tokens(tokenizer: PreTrainedTokenizerBase, messages: Messages) -> tuple[list[int], list[bool]]:
    """Return the tokens of an episode in which the student generates the chat's replies, and a mask of the replies."""
    return _generated_from(tokenizer, messages, 0)


def _generated_from(tokenizer: PreTrainedTokenizerBase, messages: Messages, start: int) -> tuple[list[int], list[bool]]:
    """Return the tokens of a chat whose replies from an index on are generated, and a mask of those."""
    replies = [i for i, message in enumerate(messages) if i >= start and message.get("role") == "assistant"]
    return _laid_out(tokenizer, messages, replies, is_generated=True)


def first_difference(tokenizer: PreTrainedTokenizerBase, messages: Messages, start: int = 0) -> str | None:
    """Return where the tokens of an episode differ from those of its whole chat, or None.

    Args:
        tokenizer: With the template.
        messages: A chat that ends with an answer to the last reply.
        start: Index of the first message that has not been compared: what is before it is as the template renders it.
    """
    token_ids, _ = _generated_from(tokenizer, messages, start)
    whole = encode(tokenizer, render(tokenizer, messages, add_generation_prompt=True))
    if token_ids == whole:
        return None
    same = next((i for i, (a, b) in enumerate(zip(token_ids, whole, strict=False)) if a != b), len(token_ids))
    ours, theirs = (tokenizer.convert_ids_to_tokens(ids[max(0, same - 2) : same + 5]) for ids in (token_ids, whole))
    return f"turn by turn {ours}, in the whole chat {theirs}"


def _replies(roles: Sequence[object]) -> list[int]:
    """Return the indices of the replies to learn: the last message, and the calls that led to it."""
    replies = [len(roles) - 1]
    while True:
        before = replies[0] - 1
        while before >= 0 and roles[before] == "tool":
            before -= 1
        if before == replies[0] - 1 or before < 0 or roles[before] != "assistant":
            return replies
        replies.insert(0, before)


def _reply(tokenizer: PreTrainedTokenizerBase, messages: Messages, *, is_generated: bool) -> list[int]:
    """Return the last message's tokens as the template renders it after the generation prompt, with its stop token.

    Args:
        tokenizer: With the template.
        messages: Up to the reply.
        is_generated: Whether it stands for one that the student generates: without the empty thought that a template
            may put before a reply, and in any case as it is.
    """
    prompt = render(tokenizer, messages[:-1], add_generation_prompt=True)
    whole = render(tokenizer, messages, add_generation_prompt=False)
    closer, tags = closing_token_id(tokenizer), thought_tags(tokenizer)
    stop = token_text(tokenizer, tokenizer.eos_token_id if closer is None else closer)
    if whole.startswith(prompt):
        reply = whole[len(prompt) :]
        lead = reply_surroundings(tokenizer)[0]
        reply = reply.removeprefix(lead) if is_generated and _is_empty_thought(lead, tags) else reply
    else:
        reply = _continued(prompt, messages[-1], tags, must_open_thought=not is_generated)
    if any(name not in reply for name in _call_names(messages[-1])):
        msg = "The chat template does not show tool calls, so a chat with tools differs from its episode."
        raise ConfigError(msg)
    if stop in reply:  # text after the stop token (usually a line break) is never sampled
        reply = reply[: reply.rindex(stop) + len(stop)]
    elif not reply.endswith(tuple(token_text(tokenizer, i) for i in turn_ending_ids(tokenizer))):
        reply += stop  # a tool call may end with a token of its own, as in Gemma 4
    prompt_ids, token_ids = encode(tokenizer, prompt), encode(tokenizer, prompt + reply)
    is_border = token_ids[: len(prompt_ids)] == prompt_ids  # otherwise a token lies across it
    return token_ids[len(prompt_ids) :] if is_border else encode(tokenizer, reply)


def _call_names(message: Message) -> tuple[str, ...]:
    calls = cast("Sequence[Mapping[str, object]]", message.get("tool_calls") or ())
    return tuple(str(cast("Mapping[str, object]", call["function"])["name"]) for call in calls)


def _is_empty_thought(lead: str, tags: Tags) -> bool:
    """Return whether what a template puts before a reply only closes a thought, or opens and closes one."""
    return tags[1] in lead and not lead.replace(tags[0], "", 1).replace(tags[1], "", 1).strip()


def _continued(prompt: str, message: Message, tags: Tags, *, must_open_thought: bool) -> str:
    """Return a reply's text after a generation prompt that its template renders otherwise later.

    A thought that the prompt opens is not opened again.

    Raises:
        ConfigError: It must continue an opened thought, and does not.
    """
    content = str(message.get("content") or "")
    opened = opens_thought(prompt, tags)
    if opened and content.startswith(tags[0]) and not message.get("tool_calls"):
        return content.removeprefix(tags[0]).lstrip()
    if not must_open_thought and not message.get("tool_calls"):
        return content
    msg = (
        "The chat template renders an assistant message differently from its generation prompt, so the learned "
        f"tokens would differ from the sampled ones. The prompt ends with {prompt[-40:]!r}"
        + (", but the reply does not begin with that thought" if opened else "")
        + ". Use a template whose generation prompt begins its turn."
    )
    raise ConfigError(msg)
