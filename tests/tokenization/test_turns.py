from __future__ import annotations

import pytest

from lightning_opd.errors import ConfigError
from lightning_opd.tokenization.turn_borders import stop_token_ids
from lightning_opd.tokenization.turns import episode_tokens, first_difference, render_demonstration
from lightning_opd.types import Message
from tests.tokenization.templates import tokenizer_with

USER: Message = {"role": "user", "content": "What is 27 + 48?"}
PLAIN: Message = {"role": "assistant", "content": "It is 75."}
THINKING: Message = {"role": "assistant", "content": "<think>\nSeven.\n</think>\n\nIt is 75."}
CALL = {"id": "call00001", "type": "function", "function": {"name": "calc", "arguments": {"x": "27+48"}}}
CALLING: Message = {"role": "assistant", "content": "", "tool_calls": [CALL]}
RESULT: Message = {"role": "tool", "name": "calc", "tool_call_id": "call00001", "content": "75"}

SAME = {
    "ChatML": (PLAIN, THINKING, CALLING),
    "own closer": (PLAIN, THINKING),
    "no closer": (PLAIN, THINKING, CALLING),
    "call closer": (PLAIN, THINKING, CALLING),
    "two closers": (PLAIN, THINKING),
    "spaces": (PLAIN, THINKING),
    "strips thoughts": (PLAIN, CALLING),
    "pastes arguments": (PLAIN, CALLING),
    "parts": (PLAIN, THINKING),
    "alternates": (PLAIN, THINKING),
    "date": (PLAIN, THINKING),
}


def answer_to(reply: Message) -> Message:
    return RESULT if reply.get("tool_calls") else USER


@pytest.mark.parametrize(("template", "reply"), [(t, reply) for t, replies in SAME.items() for reply in replies])
def test_turn_by_turn_is_the_whole_chat(template: str, reply: Message) -> None:
    tokenizer, answer = tokenizer_with(template), answer_to(reply)
    chat = (USER, reply, answer, reply, answer)
    assert first_difference(tokenizer, chat) is None
    assert first_difference(tokenizer, chat, 3) is None
    token_ids, mask = episode_tokens(tokenizer, chat)
    ends = [token_ids[i] for i, own in enumerate(mask) if own and not mask[i + 1]]
    assert set(ends) <= set(stop_token_ids(tokenizer))
    assert len(ends) == 2


def test_a_thought_that_the_prompt_opens_is_not_opened_again() -> None:
    tokenizer = tokenizer_with("opens a thought")
    token_ids, mask = render_demonstration(tokenizer, [USER, THINKING])
    learned = [token_id for token_id, own in zip(token_ids, mask, strict=True) if own]
    assert tokenizer.decode(learned) == "Seven.\n</think>\n\nIt is 75.<|im_end|>"
    assert str(tokenizer.decode(token_ids)).count("<think>") == 1
    with pytest.raises(ConfigError, match="the reply does not begin with that thought"):
        render_demonstration(tokenizer, [USER, PLAIN])
