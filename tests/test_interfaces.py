from __future__ import annotations

from collections.abc import Sequence

import pytest

from lightning_opd.interfaces import Environment, Split, Task
from lightning_opd.types import Message, Messages, Prompt

PROMPT = Prompt(({"role": "user", "content": "say a"},), "k", "t", "d")


class OneTurn(Task):
    def prompts(self, split: Split) -> Sequence[Prompt]:
        return [PROMPT]

    def outcome(self, prompt: Prompt, text: str) -> float:
        return float(text == "a")


def test_a_single_turn_task_is_an_environment_of_one_reply() -> None:
    environment = OneTurn().environment(PROMPT)
    assert environment.reset() == PROMPT.messages
    assert not environment.step({"role": "assistant", "content": "a"})
    assert environment.outcome() == 1.0


def test_a_task_without_outcome_or_demonstrations_says_what_to_override() -> None:
    class Bare(Task):
        def prompts(self, split: Split) -> Sequence[Prompt]:
            return []

    with pytest.raises(NotImplementedError, match="Bare must override `outcome`"):
        Bare().outcome(PROMPT, "")
    with pytest.raises(NotImplementedError, match="override `demonstrations`"):
        Bare().demonstrations("train", 1, 0)


def test_an_environment_of_several_turns_is_refused_with_a_reason() -> None:
    from lightning_opd.rollouts.episodes import _judge
    from lightning_opd.types import Sample, Sampling

    class Asks(Environment):
        def reset(self) -> Messages:
            return PROMPT.messages

        def step(self, reply: Message) -> Messages:
            return ({"role": "user", "content": "again"},)

        def outcome(self) -> float:
            return 0.0

    class Words:
        def decode(self, ids: list[int], **settings: bool) -> str:
            return "a"

    with pytest.raises(ValueError, match="several turns are not supported yet"):
        _judge(Asks(), PROMPT, [1], Sample((2,), (0.0,), is_truncated=False), Words(), Sampling(), ())  # type: ignore[arg-type]
