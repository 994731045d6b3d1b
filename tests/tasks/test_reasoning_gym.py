from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import Any, get_args

import pytest

from lightning_opd.errors import ConfigError
from lightning_opd.interfaces import Split
from lightning_opd.tasks import ReasoningGym
from lightning_opd.types import Prompt

SPLITS: tuple[Split, ...] = get_args(Split)
HAS_GYM = importlib.util.find_spec("reasoning_gym") is not None
needs_gym = pytest.mark.skipif(not HAS_GYM, reason="reasoning-gym is not installed (`lightning-opd[gym]`)")
pytestmark = pytest.mark.filterwarnings("ignore::SyntaxWarning")  # of the library's own sources, when first compiled

GENERATORS: Mapping[str, Mapping[str, Any]] = {
    "basic_arithmetic": {"min_terms": 2, "max_terms": 3},
    "caesar_cipher": {},
    "chain_sum": {"min_terms": 2, "max_terms": 2},
    "countdown": {"min_numbers": 3, "max_numbers": 3},
    "gcd": {},
    "letter_counting": {},
    "maze": {},
    "spell_backward": {"max_word_len": 6},
    "syllogism": {},
    "word_sorting": {},
}


@needs_gym
@pytest.mark.parametrize("name", GENERATORS)
def test_a_generators_own_answers_have_the_full_reward(name: str) -> None:
    task = ReasoningGym(name, 40, config=GENERATORS[name])
    prompts = [prompt for split in SPLITS for prompt in task.prompts(split)]
    assert 1 < len(prompts) <= 40
    for prompt in prompts:
        right = task.demonstration(prompt)
        assert right is not None
        assert task.reward(prompt, f"I think so.\n{right}") == 1
        assert task.reward(prompt, "<answer>no such thing</answer>") < 0.5
        assert task.reward(prompt, right.removesuffix("</answer>")) == task.reward(prompt, "") == 0
        assert prompt.teacher == prompt.domain == name


@needs_gym
def test_the_last_answer_counts() -> None:
    task = ReasoningGym("chain_sum", 20)
    prompt = task.prompts("train")[0]
    right = task.demonstration(prompt)
    assert task.reward(prompt, f"<answer>x</answer> no: {right}") == 1
    assert task.reward(prompt, f"{right} or rather <answer>x</answer>") < 1


@needs_gym
def test_any_seed_puts_a_question_into_the_same_split() -> None:
    def keys(seed: int) -> dict[str, set[str]]:
        task = ReasoningGym("chain_sum", 100, seed, {"max_terms": 2, "max_digits": 1})
        return {split: {p.key for p in task.prompts(split)} for split in SPLITS}

    one, two = keys(0), keys(1)
    assert one["train"] != two["train"]
    assert one["test"] & two["test"], "the test needs questions that both seeds draw"
    assert not (one["train"] & (two["test"] | two["validation"]))
    assert keys(0) == one


@needs_gym
def test_the_system_message_asks_for_the_tags() -> None:
    from reasoning_gym.utils import SYSTEM_PROMPTS

    for given, expected in (
        ("simple", SYSTEM_PROMPTS["simple"]),
        ("Say <answer>x</answer>.", "Say <answer>x</answer>."),
    ):
        first = ReasoningGym("gcd", 5, system_prompt=given).prompts("train")[0].messages[0]
        assert first == {"role": "system", "content": expected.strip()}


@needs_gym
def test_a_verifier_that_fails_gives_no_reward_and_is_named_once() -> None:
    task = ReasoningGym("gcd", 5)
    known = task.prompts("train")[0]
    task._entries[known.key].pop("answer")  # what its verifier looks for
    with pytest.warns(UserWarning, match="verifier of `gcd` failed on the answer '7'") as caught:
        assert [task.reward(known, "<answer>7</answer>") for _ in range(2)] == [0, 0]
    assert len(caught) == 1


@needs_gym
@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"name": "chain_sums"}, "`chain_sums`, which is none of the .* Did you mean `chain_sum`"),
        ({"config": {"terms": 3}}, "`config` of ReasoningGym does not suit `chain_sum`.*terms"),
        ({"config": {"min_terms": 5, "max_terms": 2}}, "does not suit `chain_sum`"),
        ({"config": {"size": 3}}, "sets `size`, which is an argument of its own"),
        ({"size": 0}, "`size` must be at least 1, got 0"),
        ({"system_prompt": "Answer."}, "must ask for the answer between <answer> and </answer>"),
    ],
    ids=str,
)
def test_settings_without_a_meaning_are_refused(settings: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        ReasoningGym(**{"name": "chain_sum", **settings})


def test_without_the_library_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r'pip install "lightning-opd\[gym\]"'):
        ReasoningGym("chain_sum")


@needs_gym
def test_a_question_without_a_known_answer_is_still_asked() -> None:
    task = ReasoningGym("rush_hour", 12)
    prompts: list[Prompt] = [*task.prompts("train"), *task.prompts("test")]
    if any(task.demonstration(prompt) is not None for prompt in prompts):
        pytest.skip("this version of the library knows the answers")
    assert prompts
    assert "answer" not in prompts[0].columns
    with pytest.raises(ConfigError, match="nothing to imitate"):
        task.demonstrations("train", 3, 0)
