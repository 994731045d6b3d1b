"""The contract of every task."""

from __future__ import annotations

import importlib.util
import json
import tempfile
from pathlib import Path
from typing import get_args

import pytest

import lightning_opd.tasks
from lightning_opd.interfaces import Split, Task
from lightning_opd.tasks import Arithmetic, Curriculum, Jsonl, Mixture, Phase, ReasoningGym, Strings
from lightning_opd.types import Message, Messages, Prompt, Trajectory
from tests.implementations import implementations

SPLITS: tuple[Split, ...] = get_args(Split)
FRACTIONS = {"train": 0.6, "validation": 0.1, "test": 0.3}


def own_rows() -> str:
    """Write a file of prompts with answers and responses and return its path."""
    rows = [
        {"prompt": f"What is {i} + 1?", "teacher": "math", "answer": i + 1, "response": f"It is {i + 1}."}
        for i in range(400)
    ]
    path = Path(tempfile.mkdtemp()) / "rows.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return str(path)


def examples() -> dict[str, list[Task]]:
    letters = Strings(num_questions=600)
    both = Mixture({"plus": Arithmetic(), "letters": letters})
    has_gym = importlib.util.find_spec("reasoning_gym") is not None
    return {
        "ReasoningGym": [ReasoningGym("chain_sum", 600) if has_gym else letters],  # an optional library
        "Strings": [letters],  # as many questions as the contract needs; the default number is checked beside
        "Jsonl": [Jsonl(own_rows(), match="numeric", split="hash")],
        "Mixture": [both],
        "Curriculum": [Curriculum([Phase(both, 0.75), Phase(letters, 0.25)])],
    }


TASKS = implementations(Task, lightning_opd.tasks, examples())
every_task = pytest.mark.parametrize("task", TASKS)


def trajectory(prompt: Prompt, reply: Message) -> Trajectory:
    return Trajectory(prompt, (), (), (), str(reply["content"]), is_truncated=False)


def demonstrated(task: Task, seed: int) -> list[tuple[Prompt, Messages]]:
    """Return demonstrations as the prompt that is answered, and everything after it."""
    prompts = {str(prompt.messages): prompt for prompt in task.prompts("train")}
    found = []
    for chat in task.demonstrations("train", 100, seed):
        length = next(i for i in range(len(chat)) if str(tuple(chat[:i])) in prompts)
        found.append((prompts[str(tuple(chat[:length]))], chat[length:]))
    return found


@every_task
def test_no_question_is_in_two_splits(task: Task) -> None:
    keys = {split: {prompt.key for prompt in task.prompts(split)} for split in SPLITS}
    total = sum(len(of_split) for of_split in keys.values())
    assert len(set().union(*keys.values())) == total
    for split, fraction in zip(SPLITS, FRACTIONS.values(), strict=True):
        assert len(keys[split]) / total == pytest.approx(fraction, abs=0.06)


@every_task
def test_prompts_come_in_the_same_order_every_time(task: Task) -> None:
    assert list(task.prompts("train")) == list(task.prompts("train"))
    assert len({prompt.key for prompt in task.prompts("train")}) == len(task.prompts("train"))


@every_task
def test_every_demonstration_of_an_expert_is_right_and_well_formed(task: Task) -> None:
    for prompt, answers in demonstrated(task, seed=0):
        assert task.reward(prompt, str(answers[-1]["content"])) == 1
        for reply in answers:
            if reply["role"] == "assistant":
                assert [rule.name for rule in task.format_rules() if rule.is_broken(trajectory(prompt, reply))] == []


@every_task
def test_a_demonstration_is_an_episode_of_its_environment(task: Task) -> None:
    for prompt, answers in demonstrated(task, seed=1):
        environment = task.environment(prompt)
        assert environment.reset() == prompt.messages
        place, given = 0, list(prompt.messages)
        while place < len(answers):
            given = list(environment.step(answers[place]))
            assert list(answers[place + 1 : place + 1 + len(given)]) == given
            place += 1 + len(given)
        assert given == []
        assert environment.reward() == 1


@every_task
def test_the_environment_rewards_like_the_outcome(task: Task) -> None:
    prompt = task.prompts("test")[0]
    for reply in ("", "no idea", "<think></think>"):
        environment = task.environment(prompt)
        assert environment.reset() == prompt.messages
        assert not environment.step({"role": "assistant", "content": reply})
        assert environment.reward() == task.reward(prompt, reply) == 0


@every_task
@pytest.mark.parametrize("num_examples", [0, 1, 20])
def test_there_are_as_many_demonstrations_as_asked_for(task: Task, num_examples: int) -> None:
    assert len(task.demonstrations("train", num_examples, seed=3)) == num_examples
    assert task.demonstrations("train", num_examples, seed=3) == task.demonstrations("train", num_examples, seed=3)
