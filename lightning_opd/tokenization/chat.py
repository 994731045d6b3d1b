"""Messages to token ids and back, always through the tokenizer's own chat template."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

from lightning_opd.errors import ConfigError
from lightning_opd.tokenization.compatibility import missing_template
from lightning_opd.types import Message, Messages

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def render_prompt(tokenizer: PreTrainedTokenizerBase, messages: Messages) -> list[int]:
    """Return the tokens before a reply: the chat and an opened assistant turn."""
    return _encode(tokenizer, _render(tokenizer, messages, add_generation_prompt=True))


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
    stand_in, everything = "reply", str((messages, answer))
    while stand_in in everything:
        stand_in += "_"
    shown = [{**m, "content": stand_in} if m.get("role") == "assistant" else m for m in messages]
    chat = (*shown, {**(reply or {"role": "assistant"}), "content": stand_in}, *answer)
    _, found, rest = _render(tokenizer, chat, add_generation_prompt=True).rpartition(stand_in)
    if not found:
        msg = "The chat template does not show an assistant's content, so no answer can follow it. Use another one."
        raise ConfigError(msg)
    token_ids, closer = _encode(tokenizer, rest), closing_token_id(tokenizer)
    if closer is None or closer not in token_ids or last_token_id not in (None, closer):
        return token_ids
    return token_ids[token_ids.index(closer) + 1 :]


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
    token_ids: list[int] = []
    mask: list[bool] = []
    for i, reply in enumerate(replies):
        if i == 0:
            context = render_prompt(tokenizer, messages[:reply])
        else:
            answer = messages[replies[i - 1] + 1 : reply]
            context = render_answer(tokenizer, messages[: replies[i - 1]], answer, token_ids[-1])
        reply_ids = _encode(tokenizer, _reply(tokenizer, messages[: reply + 1]))
        token_ids += context + reply_ids
        mask += [False] * len(context) + [True] * len(reply_ids)
    return token_ids, mask


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


def _reply(tokenizer: PreTrainedTokenizerBase, messages: Messages) -> str:
    """Return the last message as the template renders it after the generation prompt, with its stop token."""
    prompt = _render(tokenizer, messages[:-1], add_generation_prompt=True)
    whole = _render(tokenizer, messages, add_generation_prompt=False)
    if not whole.startswith(prompt):
        msg = (
            "The chat template renders an assistant message differently from its generation prompt, so the learned "
            "tokens would differ from the sampled ones. Use a template whose generation prompt begins its turn."
        )
        raise ConfigError(msg)
    reply, closer = whole[len(prompt) :], closing_token_id(tokenizer)
    stop = _text(tokenizer, tokenizer.eos_token_id if closer is None else closer)
    if stop:  # text after the stop token (usually a line break) is never sampled
        before, _, _ = reply.rpartition(stop)
        reply = (before if stop in reply else reply) + stop
    return reply


def decode_response(tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int], stop_token_ids: Sequence[int]) -> str:
    """Return a response's text without its stop token; other special tokens stay visible."""
    kept = token_ids[:-1] if token_ids and token_ids[-1] in stop_token_ids else token_ids
    return cast("str", tokenizer.decode(list(kept), skip_special_tokens=False, clean_up_tokenization_spaces=False))


def closing_token_id(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Return the control token with which the chat template closes an assistant's turn, or None where it has none.

    Often the tokenizer's `eos_token`, but not always: Gemma closes a turn with `<end_of_turn>`, Phi-3 with `<|end|>`.
    """
    if not tokenizer.chat_template:
        return None
    _, after = reply_surroundings(tokenizer)
    control = {token_id for token_id, entry in tokenizer.added_tokens_decoder.items() if entry.special}
    return next((token_id for token_id in _encode(tokenizer, after) if token_id in control), None)


def stop_token_ids(tokenizer: PreTrainedTokenizerBase, model_eos: int | Sequence[int] | None = None) -> tuple[int, ...]:
    """Return the tokens that end a response.

    They are the tokenizer's `eos_token`, those that the model declares, and the one with which the chat
    template closes an assistant's turn.

    Args:
        tokenizer: With its chat template.
        model_eos: `eos_token_id` of the model's generation configuration: one, several, or None.

    Raises:
        ConfigError: There is none.
    """
    more = [model_eos] if isinstance(model_eos, int) else list(model_eos or ())
    own = [] if tokenizer.eos_token_id is None else [int(cast("int", tokenizer.eos_token_id))]
    closer = closing_token_id(tokenizer)
    more += [] if closer is None else [closer]
    if not own and not more:
        msg = (
            "The tokenizer has no stop token (`eos_token`), so responses would never end. Set it in "
            "tokenizer_config.json, or name the ids in `data.sampling.stop_token_ids`."
        )
        raise ConfigError(msg)
    return tuple(dict.fromkeys([*own, *more]))


def reply_surroundings(tokenizer: PreTrainedTokenizerBase) -> tuple[str, str]:
    """Return what the chat template puts between the generation prompt and a reply, and after the reply.

    The first is often a space; it is empty where the template shows a reply in another place.
    """
    question, reply = {"role": "user", "content": "?"}, {"role": "assistant", "content": "reply"}
    prompt = _render(tokenizer, [question], add_generation_prompt=True)
    whole = _render(tokenizer, [question, reply], add_generation_prompt=False)
    before, _, after = whole.rpartition("reply")
    return before[len(prompt) :] if before.startswith(prompt) else "", after


def _render(tokenizer: PreTrainedTokenizerBase, messages: Messages, *, add_generation_prompt: bool) -> str:
    if not tokenizer.chat_template:
        raise ConfigError(missing_template(tokenizer))
    chat = cast("list[dict[str, str]]", [{k: v for k, v in message.items() if k != "tools"} for message in messages])
    tools = cast("list[dict[str, object]] | None", messages[0].get("tools") if messages else None)
    return cast(
        "str",
        tokenizer.apply_chat_template(
            chat,
            tools=list(tools) if tools else None,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
        ),
    )


def _text(tokenizer: PreTrainedTokenizerBase, token_id: object) -> str:
    return "" if token_id is None else str(tokenizer.convert_ids_to_tokens(cast("int", token_id)))


def _encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    # half an emoji (a lone surrogate, which JSON can carry) is no text to any tokenizer
    text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return cast("list[int]", tokenizer.encode(text, add_special_tokens=False))
