from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import pytest
from transformers import PreTrainedTokenizerBase

from lightning_opd.errors import ConfigError
from lightning_opd.tokenization.exchanges import Exchange, check_first_turn, check_turns
from lightning_opd.tokenization.thoughts import thought_tags
from lightning_opd.tokenization.turns import first_difference
from lightning_opd.types import Message
from tests.tokenization.templates import TEMPLATES, tokenizer_with
from tests.tokenization.test_turns import CALLING, PLAIN, RESULT, SAME, THINKING, USER, answer_to

CALL, SAY = Exchange(("tool",), num_calls=1), Exchange(("user",))
THINK_AND_CALL, THINK_AND_SAY = Exchange(("tool",), 1, has_thought=True), Exchange(("user",), has_thought=True)


def exchange(tokenizer: PreTrainedTokenizerBase, reply: Message) -> Exchange:
    return Exchange.of(tokenizer, reply, [answer_to(reply)])


def refused(tokenizer: PreTrainedTokenizerBase, exchanges: Sequence[Exchange]) -> int | None:
    """Return the turn at which an episode is refused, or None."""
    for turn in range(1, len(exchanges) + 1):
        try:
            check_turns(tokenizer, [USER], exchanges[:turn])
        except ConfigError:
            return turn
    return None


def test_an_exchange_knows_what_a_template_may_go_by() -> None:
    tokenizer = tokenizer_with("ChatML")
    assert exchange(tokenizer, PLAIN) == SAY
    assert exchange(tokenizer, THINKING) == THINK_AND_SAY
    assert exchange(tokenizer, CALLING) == CALL
    twice = {**CALLING, "content": "Why? </think>", "tool_calls": [*CALLING["tool_calls"]] * 2}  # type: ignore[misc]  # a list
    assert Exchange.of(tokenizer, twice, [RESULT, RESULT, USER]) == Exchange(("tool", "tool", "user"), 2, True)


@pytest.mark.parametrize(("template", "reply"), [(t, reply) for t, replies in SAME.items() for reply in replies])
def test_a_template_that_keeps_every_turn_passes(template: str, reply: Message) -> None:
    tokenizer = tokenizer_with(template)
    assert refused(tokenizer, [exchange(tokenizer, reply)] * 3) is None


@pytest.mark.parametrize(
    ("template", "reply", "difference"),
    [
        ("last closer", PLAIN, r"turn by turn \[.*<\|im_end\|>.*, in the whole chat \[.*<turn\|>"),
        ("strips thoughts", THINKING, r"replies with thoughts otherwise.*turn by turn \[.*<think>"),
        ("opens a thought", THINKING, r"replies with thoughts otherwise.*turn by turn \[.*<think>"),
        ("opens a thought", PLAIN, r"turn by turn \[.*<think>.*max_turns` to 1"),
        ("own closer", CALLING, "does not show tool calls"),
        ("alternates", CALLING, "does not show tool calls"),
    ],
)
def test_a_template_that_renders_earlier_turns_otherwise_is_refused(
    template: str, reply: Message, difference: str
) -> None:
    tokenizer = tokenizer_with(template)
    with pytest.raises(ConfigError, match=difference):
        check_turns(tokenizer, [USER], [exchange(tokenizer, reply)])


def test_what_a_later_turn_takes_away_is_found_when_it_comes() -> None:
    tokenizer = tokenizer_with("strips thoughts")
    assert refused(tokenizer, [THINK_AND_CALL] * 4) is None, "thoughts stay while tools answer"
    assert refused(tokenizer, [THINK_AND_CALL, CALL, SAY, CALL]) == 3
    assert refused(tokenizer, [CALL, SAY, THINK_AND_CALL, SAY]) == 4
    assert refused(tokenizer, [SAY, CALL, SAY, THINK_AND_CALL]) is None
    with pytest.raises(ConfigError, match=r"tool calls with thoughts, then replies otherwise.*`user`.*max_turns` to 2"):
        check_turns(tokenizer, [USER], [THINK_AND_CALL, SAY])


def test_a_template_that_merges_what_is_older_than_two_turns_is_found() -> None:
    tokenizer = tokenizer_with.__wrapped__("ChatML")
    template = str(tokenizer.chat_template)
    shown = (
        "{% if m.role == 'tool' and loop.index0 + 4 < messages|length %}(left out){% else %}{{ m.content }}{% endif %}"
    )
    tokenizer.chat_template = template.replace("{{ m['content'] }}", shown)
    assert refused(tokenizer, [SAY] * 5) is None
    assert refused(tokenizer, [CALL] * 5) == 3
    assert refused(tokenizer, [SAY, CALL, SAY, SAY, SAY]) == 4


@pytest.mark.parametrize("template", TEMPLATES)
def test_turn_by_turn_checks_are_those_of_the_whole_chat(template: str) -> None:
    tokenizer, tags = tokenizer_with(template), thought_tags(tokenizer_with(template))

    def differs(exchanges: Sequence[Exchange]) -> bool:
        chat = [USER]
        for number, kind in enumerate(exchanges):
            chat += kind.messages(tags, number)
        try:
            return first_difference(tokenizer, chat) is not None
        except ConfigError:
            return True

    for exchanges in product((CALL, SAY, THINK_AND_CALL), repeat=3):
        beginnings = (turn for turn in range(1, 4) if differs(exchanges[:turn]))
        assert refused(tokenizer, exchanges) == next(beginnings, None), exchanges


def test_an_empty_thought_in_the_prompt_is_missed_later() -> None:
    tokenizer = tokenizer_with.__wrapped__("strips thoughts")
    tokenizer.init_kwargs["chat_template_kwargs"] = {"enable_thinking": False}
    with pytest.raises(ConfigError, match=r"turn by turn \[.*<think>"):
        check_turns(tokenizer, [USER], [SAY])


def test_a_rows_own_settings_count() -> None:
    tokenizer = tokenizer_with("strips thoughts")
    check_turns(tokenizer, [USER], [SAY])
    with pytest.raises(ConfigError, match=r"turn by turn \[.*<think>"):
        check_turns(tokenizer, [{**USER, "chat_template_kwargs": {"enable_thinking": False}}], [SAY])


def test_thoughts_are_those_of_the_template() -> None:
    tokenizer = tokenizer_with.__wrapped__("strips thoughts")
    template = str(tokenizer.chat_template).replace("<think>", "[THINK]").replace("</think>", "[/THINK]")
    tokenizer.chat_template = template
    check_turns(tokenizer, [USER], [exchange(tokenizer, THINKING)])  # in another family's tags: only words
    content = str(THINKING["content"]).replace("<think>", "[THINK]").replace("</think>", "[/THINK]")
    with pytest.raises(ConfigError, match="replies with thoughts otherwise"):
        check_turns(tokenizer, [USER], [exchange(tokenizer, {**THINKING, "content": content})])


def test_an_episode_can_go_on_where_some_kind_of_reply_is_kept() -> None:
    tokenizer = tokenizer_with("strips thoughts")
    check_first_turn(tokenizer, [USER], [THINK_AND_SAY, SAY])
    check_first_turn(tokenizer, [USER], [SAY, THINK_AND_SAY])
    check_first_turn(tokenizer, [USER], [])
    with pytest.raises(ConfigError, match="renders replies with thoughts otherwise"):
        check_first_turn(tokenizer, [USER], [THINK_AND_SAY])
    with pytest.raises(ConfigError, match="renders replies otherwise"):
        check_first_turn(tokenizer_with("last closer"), [USER], [SAY, THINK_AND_SAY])
