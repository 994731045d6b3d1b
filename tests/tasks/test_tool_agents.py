from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from lightning_opd.tasks import CalculatorAgent, TextAgent
from lightning_opd.tasks.format_rules import Truncated
from lightning_opd.tasks.tool_agent import ToolAgent
from lightning_opd.tokenization.tool_calls import CLOSE, OPEN, render_tool_call
from lightning_opd.types import Messages, Prompt, Trajectory

AGENTS = (CalculatorAgent, TextAgent)


def play(task: ToolAgent, prompt: Prompt, *replies: str) -> tuple[list[str], float]:
    """Return the environment's answer to each reply, and the reward."""
    environment = task.environment(prompt)
    environment.reset()
    answers = [environment.step({"role": "assistant", "content": reply}) for reply in replies]
    return [str(answer[0]["content"]) if answer else "" for answer in answers], environment.reward()


@pytest.mark.parametrize("agent", AGENTS)
def test_the_right_call_leads_to_the_answer_and_the_slip_into_the_trap(agent: Callable[..., ToolAgent]) -> None:
    task, survivors = agent(), 0
    prompts = task.prompts("test")[:100]
    for prompt in prompts:
        right, wrong = (render_tool_call(c.name, c.arguments) for c in (task.call(prompt), task.slip(prompt)))
        answer = str(prompt.columns["answer"])
        assert play(task, prompt, right, answer) == ([answer, ""], 1.0)
        (trap, _), reward = play(task, prompt, wrong, play(task, prompt, wrong)[0][0])
        assert not trap.startswith("error")
        assert reward == (trap == answer)
        survivors += trap == answer
    assert survivors / len(prompts) < 0.25


@pytest.mark.parametrize("agent", AGENTS)
def test_a_call_left_open_is_answered_in_the_lenient_harness_only(agent: Callable[..., ToolAgent]) -> None:
    strict, lenient = agent(), agent(harness="lenient")
    prompt = strict.prompts("test")[0]
    call = strict.call(prompt)
    left_open = render_tool_call(call.name, call.arguments).removesuffix(CLOSE)
    answer = str(prompt.columns["answer"])
    assert play(strict, prompt, left_open) == ([""], 0.0)
    assert play(lenient, prompt, left_open, answer) == ([answer, ""], 1.0)
    for task in (strict, lenient):
        rules = [r.name for r in task.format_rules() if r.is_broken(whole(prompt, left_open))]
        assert rules == ["unbalanced_tool_call"]


def whole(prompt: Prompt, reply: str) -> Trajectory:
    return Trajectory(prompt, (), (), (), reply, is_truncated=False)


def fractions(chats: list[Messages], task: ToolAgent) -> tuple[float, float]:
    """Return the fraction of right calls and that of open ones."""
    texts = {str(p.messages): p for p in task.prompts("train")}
    num_right = num_open = 0
    for question, call, *_ in chats:
        right = task.call(texts[str((question,))])
        body = str(call["content"]).removesuffix(CLOSE)
        num_right += body == render_tool_call(right.name, right.arguments).removesuffix(CLOSE)
        num_open += not str(call["content"]).endswith(CLOSE)
        assert body.startswith(OPEN)
    return num_right / len(chats), num_open / len(chats)


@pytest.mark.parametrize("agent", AGENTS)
def test_the_demonstrator_slips_and_leaves_open_as_often_as_told(agent: Callable[..., ToolAgent]) -> None:
    task = agent(right_fraction=0.7, open_fraction=0.2)
    right, left_open = fractions(list(task.demonstrations("train", 400, 0)), task)
    assert right == pytest.approx(0.7, abs=0.08)
    assert left_open == pytest.approx(0.2, abs=0.08)
    lengths = {len(chat) for chat in task.demonstrations("train", 100, 0)}
    assert lengths == {2, 4}, "in the strict harness an open call ends the episode"
    lenient = agent(open_fraction=0.8, harness="lenient")
    assert {len(chat) for chat in lenient.demonstrations("train", 100, 0)} == {4}


def test_rules_are_named_once() -> None:
    for agent in AGENTS:
        names = [rule.name for rule in agent().format_rules()]
        assert len(set(names)) == len(names) == 7
        assert Truncated().name in names


@pytest.mark.parametrize("wrong", [{"right_fraction": 1.5}, {"open_fraction": -0.1}])
def test_wrong_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        CalculatorAgent(**wrong)
