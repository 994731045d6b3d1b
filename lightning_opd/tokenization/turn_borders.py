"""Where an assistant's turn ends: the tokens that close it, and what templates put around a reply."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

from lightning_opd.errors import ConfigError
from lightning_opd.tokenization.rendering import control_pattern, encode, render
from lightning_opd.tokenization.template_cache import by_template
from lightning_opd.types import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

USER: Message = {"role": "user", "content": "?"}

STAND_IN = "stand-in"
"""Placeholder for what an assistant says; no template writes it after a reply."""


@by_template
def closing_token_id(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Return the control token with which the chat template closes an assistant's turn, or None where it has none.

    Often the tokenizer's `eos_token`, but not always: Gemma closes a turn with `<end_of_turn>`, Phi-3 with `<|end|>`.
    Of several it is the last one that stands after a reply both at the end of a chat and before another message.
    """
    if not tokenizer.chat_template:
        return None
    last = _tail(tokenizer)
    inner = _tail(tokenizer, USER)
    both = _control_ids(tokenizer, common_beginning(tokenizer, last, inner))
    return both[-1] if both else next(iter(_control_ids(tokenizer, last)), None)


def _tail(tokenizer: PreTrainedTokenizerBase, *answer: Message, reply: Message | None = None) -> str:
    """Return what the template shows after a reply's content, or after its last call's arguments."""
    chat = (USER, stand_in_reply(reply, STAND_IN), *answer)
    _, found, after = render(tokenizer, chat, add_generation_prompt=False).rpartition(STAND_IN)
    if not found:
        msg = "The chat template does not show an assistant's words or tool calls, so no reply can be found in it."
        raise ConfigError(msg)
    return after


def _control_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Return the special tokens of a rendered text in order."""
    special = {token_id for token_id, entry in tokenizer.added_tokens_decoder.items() if entry.special}
    return [token_id for token_id in encode(tokenizer, text) if token_id in special]


@by_template
def turn_ending_ids(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Return all tokens with which the chat template ends an assistant's turn.

    The closing token; where nothing closes a turn, the first token of a user's or a tool's message after it (GLM-4);
    and where a tool call is closed by another token, that one (Gemma 4).
    """
    closer = closing_token_id(tokenizer)
    result: Message = {"role": "tool", "name": "probe", "tool_call_id": "000000000", "content": "?"}
    endings = [] if closer is None else [closer]
    for answer, reply in ((USER, None), (result, _calling(1))):
        try:
            last, inner = _tail(tokenizer, reply=reply), _tail(tokenizer, answer, reply=reply)
        except ConfigError:  # the template has no tools
            continue
        shared = common_beginning(tokenizer, last, inner)
        of_each_call = _of_each_call(tokenizer)
        of_reply = [token_id for token_id in _control_ids(tokenizer, shared) if token_id not in of_each_call]
        ids = of_reply[-1:] or _control_ids(tokenizer, inner[len(shared) :])[:1]
        endings += ids if closer is None or closer not in encode(tokenizer, last) else []
    return tuple(dict.fromkeys(endings))


def _calling(num_calls: int) -> Message:
    calls = [
        {"id": f"00000000{i}", "type": "function", "function": {"name": "probe", "arguments": {}}}
        for i in range(num_calls)
    ]
    return {"role": "assistant", "content": "", "tool_calls": calls}


def _of_each_call(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Return the tokens that each tool call brings along; none where a reply makes one call at most."""
    try:
        one, two = (
            encode(tokenizer, render(tokenizer, (USER, _calling(n)), add_generation_prompt=False)) for n in (1, 2)
        )
    except ConfigError:
        return set()
    return {token_id for token_id in two if two.count(token_id) > one.count(token_id)}


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
    more += turn_ending_ids(tokenizer) if tokenizer.chat_template else ()
    if not own and not more:
        msg = (
            "The tokenizer has no stop token (`eos_token`), so responses would never end. Set it in "
            "tokenizer_config.json, or name the ids in `data.sampling.stop_token_ids`."
        )
        raise ConfigError(msg)
    return tuple(dict.fromkeys([*own, *more]))


@by_template
def reply_surroundings(tokenizer: PreTrainedTokenizerBase) -> tuple[str, str]:
    """Return what the chat template puts between the generation prompt and a reply, and after the reply.

    The first is often a space; it is empty where the template shows a reply in another place.
    """
    return surroundings_of_reply_to(USER, tokenizer)


def surroundings_of_reply_to(message: Message, tokenizer: PreTrainedTokenizerBase) -> tuple[str, str]:
    """Return what `reply_surroundings` does for a reply to this message."""
    prompt = render(tokenizer, [message], add_generation_prompt=True)
    whole = render(tokenizer, [message, stand_in_reply(None, STAND_IN)], add_generation_prompt=False)
    before, _, after = whole.rpartition(STAND_IN)
    return before[len(prompt) :] if before.startswith(prompt) else "", after


def common_beginning(tokenizer: PreTrainedTokenizerBase, one: str, other: str) -> str:
    """Return what two rendered texts begin with alike, up to a whole control token."""
    length = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    inside = (
        token.start() for token in control_pattern(tokenizer).finditer(one) if token.start() < length < token.end()
    )
    return one[: next(inside, length)]


def stand_in_reply(reply: Message | None, stand_in: str) -> Message:
    """Return a reply with a placeholder for its content and in its last tool call: what templates show last."""
    shown = reply or {"role": "assistant"}
    calls = cast("Sequence[Message]", shown.get("tool_calls") or ())
    if not calls or shown.get("content"):
        shown = {**shown, "content": stand_in}
    if not calls:
        return shown
    function = {**cast("Message", calls[-1]["function"]), "arguments": {stand_in: stand_in}}
    return {**shown, "tool_calls": [*calls[:-1], {**calls[-1], "function": function}]}


def token_text(tokenizer: PreTrainedTokenizerBase, token_id: object) -> str:
    """Return a token as the vocabulary writes it; nothing for None."""
    return "" if token_id is None else str(tokenizer.convert_ids_to_tokens(cast("int", token_id)))
