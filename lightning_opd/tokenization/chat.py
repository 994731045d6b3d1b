"""Messages to token ids and back, always through the tokenizer's own chat template."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

from lightning_opd.tokenization.compatibility import missing_template
from lightning_opd.types import Messages

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def render_prompt(tokenizer: PreTrainedTokenizerBase, messages: Messages) -> list[int]:
    """Return the tokens the student sees before it writes: the chat and an opened assistant turn."""
    return _encode(tokenizer, _render(tokenizer, messages, add_generation_prompt=True))


def render_demonstration(tokenizer: PreTrainedTokenizerBase, messages: Messages) -> tuple[list[int], list[bool]]:
    """Return a whole chat's tokens and a mask that is True on its last message, stop token included.

    The prompt's tokens are exactly those of `render_prompt`; the reply is tokenised apart from
    them, as it is when the student writes it. A template that does not end a turn with the stop
    token gets it appended, so that what is learned can stop.

    Raises:
        ValueError: The last message is not the assistant's, or the template does not show it
            right behind the generation prompt.
    """
    if not messages or messages[-1].get("role") != "assistant":
        role = messages[-1].get("role") if messages else "no message"
        msg = f"A demonstration must end with a message of role `assistant`, got {role}."
        raise ValueError(msg)
    prompt = _render(tokenizer, messages[:-1], add_generation_prompt=True)
    whole = _render(tokenizer, messages, add_generation_prompt=False)
    if not whole.startswith(prompt):
        msg = (
            "The chat template renders an assistant message differently from its generation prompt, so that what is "
            "learned would not be what is sampled. Use a template whose generation prompt begins the assistant's turn."
        )
        raise ValueError(msg)
    reply = whole[len(prompt) :]
    stop = tokenizer.eos_token
    if isinstance(stop, str):  # what follows the stop token (a line break, usually) is never sampled
        before, _, _ = reply.rpartition(stop)
        reply = (before if stop in reply else reply) + stop
    prompt_ids, reply_ids = _encode(tokenizer, prompt), _encode(tokenizer, reply)
    return prompt_ids + reply_ids, [False] * len(prompt_ids) + [True] * len(reply_ids)


def decode_response(tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int], stop_token_ids: Sequence[int]) -> str:
    """Return a response's text without its stop token; other special tokens stay visible."""
    kept = token_ids[:-1] if token_ids and token_ids[-1] in stop_token_ids else token_ids
    return cast("str", tokenizer.decode(list(kept), skip_special_tokens=False, clean_up_tokenization_spaces=False))


def stop_token_ids(tokenizer: PreTrainedTokenizerBase, model_eos: int | Sequence[int] | None = None) -> tuple[int, ...]:
    """Return the tokens that end a response: the tokenizer's and, if given, the model's own.

    Raises:
        ValueError: There is none.
    """
    more = [model_eos] if isinstance(model_eos, int) else list(model_eos or ())
    own = [] if tokenizer.eos_token_id is None else [int(cast("int", tokenizer.eos_token_id))]
    if not own and not more:
        msg = (
            "The tokenizer has no stop token (`eos_token`), so responses would never end. Set it in "
            "tokenizer_config.json, or name the ids in `data.sampling.stop_token_ids`."
        )
        raise ValueError(msg)
    return tuple(dict.fromkeys([*own, *more]))


def reply_surroundings(tokenizer: PreTrainedTokenizerBase) -> tuple[str, str]:
    """Return what the chat template puts between the generation prompt and a reply, and what behind the reply.

    The first is often a space; it is empty where the template shows a reply in another place.
    """
    question, reply = {"role": "user", "content": "?"}, {"role": "assistant", "content": "reply"}
    prompt = _render(tokenizer, [question], add_generation_prompt=True)
    whole = _render(tokenizer, [question, reply], add_generation_prompt=False)
    before, _, after = whole.rpartition("reply")
    return before[len(prompt) :] if before.startswith(prompt) else "", after


def _render(tokenizer: PreTrainedTokenizerBase, messages: Messages, *, add_generation_prompt: bool) -> str:
    if not tokenizer.chat_template:
        raise ValueError(missing_template(tokenizer))
    chat = cast("list[dict[str, str]]", [dict(message) for message in messages])
    return cast("str", tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=add_generation_prompt))


def _encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return cast("list[int]", tokenizer.encode(text, add_special_tokens=False))
