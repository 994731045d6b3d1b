from __future__ import annotations

from collections.abc import Sequence

import pytest

from lightning_opd.errors import ConfigError
from lightning_opd.interfaces import Split, Task
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


@pytest.mark.parametrize("value", [None, float("nan"), float("inf"), "1"])
def test_a_reward_that_is_no_finite_number_stops_with_its_function_and_prompt(value: object) -> None:
    class Broken(OneTurn):
        def reward(self, prompt: Prompt, text: str) -> float:
            return value  # type: ignore[return-value]  # what users return by mistake

    with pytest.raises(ConfigError, match=rf"`Broken.reward` returned the reward {value!r} .* `{PROMPT.key}`"):
        Broken().environment(PROMPT).reward()


def test_a_task_without_reward_or_demonstrations_says_what_to_override() -> None:
    class Bare(Task):
        def prompts(self, split: Split) -> Sequence[Prompt]:
            return []

    with pytest.raises(NotImplementedError, match="Bare must override `reward`"):
        Bare().reward(PROMPT, "")
    with pytest.raises(NotImplementedError, match="override `demonstrations`"):
        Bare().demonstrations("train", 1, 0)
