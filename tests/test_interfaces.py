from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction

import numpy
import pytest

from lightning_opd.errors import ConfigError
from lightning_opd.interfaces import Split, Task, finite_reward
from lightning_opd.types import Prompt

PROMPT = Prompt(({"role": "user", "content": "say a"},), "k", "t", "d")


class OneTurn(Task):
    def prompts(self, split: Split) -> Sequence[Prompt]:
        return [PROMPT]

    def reward(self, prompt: Prompt, text: str) -> float:
        return float(text == "a")


def test_a_single_turn_task_is_an_environment_of_one_reply() -> None:
    environment = OneTurn().environment(PROMPT)
    assert environment.reset() == PROMPT.messages
    assert not environment.step({"role": "assistant", "content": "a"})
    assert environment.reward() == 1.0


@pytest.mark.parametrize("value", [None, float("nan"), float("inf"), float("-inf"), 1e39, -(10**400), "1", [1]])
def test_a_reward_that_is_no_finite_number_stops_with_its_function_and_prompt(value: object) -> None:
    class Broken(OneTurn):
        def reward(self, prompt: Prompt, text: str) -> float:
            return value  # type: ignore[return-value]  # what users return by mistake

    with pytest.raises(
        ConfigError, match=rf"`Broken.reward` returned the reward {re.escape(repr(value))} .* `{PROMPT.key}`"
    ):
        Broken().environment(PROMPT).reward()


@pytest.mark.parametrize("value", [True, 1, numpy.float32(1.0), numpy.int64(1), Fraction(1)], ids=repr)
def test_any_real_number_is_a_reward(value: float) -> None:
    reward = finite_reward(value, "here", "key")
    assert reward == 1.0
    assert type(reward) is float


def test_a_task_without_reward_or_demonstrations_says_what_to_override() -> None:
    class Bare(Task):
        def prompts(self, split: Split) -> Sequence[Prompt]:
            return []

    with pytest.raises(NotImplementedError, match="Bare must override `reward`"):
        Bare().reward(PROMPT, "")
    with pytest.raises(NotImplementedError, match="override `demonstrations`"):
        Bare().demonstrations("train", 1, 0)
