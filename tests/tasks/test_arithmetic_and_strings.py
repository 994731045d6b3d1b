from __future__ import annotations

from collections.abc import Callable

import pytest

from lightning_opd.tasks import Arithmetic, Strings
from lightning_opd.tasks.tool_answer import ToolAnswer
from lightning_opd.types import Prompt

TASKS = (Arithmetic(), Strings())
both = pytest.mark.parametrize("task", TASKS, ids=("arithmetic", "strings"))


def reply(task: ToolAnswer, result: str, name: str | None = None) -> str:
    arguments = '{"result": "' + result + '"}'
    return f'<think>…</think><tool_call>{{"name": "{name or task.tool}", "arguments": {arguments}}}</tool_call>'


def right_reply(task: ToolAnswer, prompt: Prompt) -> str:
    return reply(task, str(prompt.columns["answer"]))


@both
def test_there_are_enough_questions_for_the_report(task: ToolAnswer) -> None:
    assert len(task.prompts("train")) >= 4096
    assert len(task.prompts("test")) >= 2048
    assert len(task.prompts("validation")) >= 512


@both
def test_another_object_asks_the_same_questions(task: ToolAnswer) -> None:
    make: Callable[[], ToolAnswer] = type(task)
    assert make().prompts("test") == task.prompts("test")


def test_sums_are_right() -> None:
    prompts = [prompt for prompt in TASKS[0].questions() if prompt.columns["question"] in ("10+10", "99+99")]
    assert [prompt.columns["answer"] for prompt in prompts] == ["20", "198"]


def test_letters_are_sorted_and_reversed() -> None:
    questions = TASKS[1].questions()
    for prompt in questions[:500]:
        letters, answer = str(prompt.columns["letters"]).split(), str(prompt.columns["answer"]).split()
        assert answer == (sorted(letters) if prompt.columns["action"] == "sort" else letters[::-1])
        assert len(letters) == len(set(letters))
    lengths = [len(str(prompt.columns["letters"]).split()) for prompt in questions]
    assert lengths.count(3) == lengths.count(4) == 6000


@both
def test_the_right_result_counts_as_text_and_as_number(task: ToolAnswer) -> None:
    prompt = task.prompts("test")[0]
    right = right_reply(task, prompt)
    assert task.reward(prompt, right) == 1
    if isinstance(task, Arithmetic):
        answer = str(prompt.columns["answer"])
        assert task.reward(prompt, right.replace(f'"{answer}"', answer)) == 1


@both
def test_only_a_single_well_formed_call_with_the_right_result_counts(task: ToolAnswer) -> None:
    prompt, other = task.prompts("test")[:2]
    right, answer = right_reply(task, prompt), str(prompt.columns["answer"])
    assert prompt.columns["answer"] != other.columns["answer"]
    wrong = {
        "the answer without a call": answer,
        "another result": right_reply(task, other),
        "another tool": reply(task, answer, name="other"),
        "two calls, both right": right + right,
        "two calls, one right": reply(task, "0") + right,
        "a call inside a call": right.replace("<tool_call>", "<tool_call><tool_call>"),
        "no opening tag": right.replace("<tool_call>", ""),
        "no closing tag": right.replace("</tool_call>", ""),
        "a brace too few": right.replace('"}}', '"}'),
        "two results in one call": right.replace('{"result"', '{"result": "0", "result"'),
        "a second argument": right.replace('{"result"', '{"other": "0", "result"'),
        "a list": right.replace(f'"{answer}"', f'["{answer}"]'),
        "code": right.replace(f'"{answer}"', f'str("{answer}")'),
        "spaces around": reply(task, f" {answer} "),
        "nothing": "",
    }
    assert {name: task.reward(prompt, text) for name, text in wrong.items()} == dict.fromkeys(wrong, 0.0)


@pytest.mark.parametrize("kind", [Arithmetic, Strings])
def test_a_sloppy_agent_is_right_about_half_of_the_time(kind: Callable[..., ToolAnswer]) -> None:
    task = kind("sloppy")
    prompts = {str(prompt.messages): prompt for prompt in task.prompts("train")}
    chats = task.demonstrations("train", 4000, seed=0)
    texts = [str(chat[-1]["content"]) for chat in chats]
    outcomes = [task.reward(prompts[str(chat[:-1])], text) for chat, text in zip(chats, texts, strict=True)]
    assert 0.5 < sum(outcomes) / len(outcomes) < 0.58
    malformed = [text for text in texts if not (text.count("<tool_call>") == 1 and text.endswith('"}}</tool_call>'))]
    assert 0.11 < len(malformed) / len(texts) < 0.17


@pytest.mark.parametrize("kind", [Arithmetic, Strings])
def test_slips_outnumber_right_replies_where_they_matter(kind: Callable[..., ToolAnswer]) -> None:
    """Greedy decoding of a model of this agent then slips, while samples still show the skill."""
    task = kind("sloppy")
    prompts = {str(prompt.messages): prompt for prompt in task.prompts("train")}
    chats = task.demonstrations("train", 4000, seed=0)
    hard = [(prompts[str(chat[:-1])], str(chat[-1]["content"])) for chat in chats]
    hard = [(prompt, text) for prompt, text in hard if task.slip(prompt) != task.thoughts(prompt)]
    slips = sum(task.slip(prompt)[0] in text for prompt, text in hard)
    rights = sum(task.thoughts(prompt)[0] in text for prompt, text in hard)
    assert slips > 1.5 * rights
    assert rights > 0.2 * len(hard)


@pytest.mark.parametrize(("fraction", "expected"), [(0.0, 0.0), (1.0, 1.0)])
def test_the_fraction_of_right_replies_is_a_setting(fraction: float, expected: float) -> None:
    task = Arithmetic("sloppy", sloppy_right_fraction=fraction)
    carries = [p for p in task.prompts("train") if task.slip(p) != task.thoughts(p)]
    prompts = {str(prompt.messages): prompt for prompt in carries}
    chats = [chat for chat in task.demonstrations("train", 500, seed=1) if str(chat[:-1]) in prompts]
    outcomes = {task.reward(prompts[str(chat[:-1])], str(chat[-1]["content"])) for chat in chats}
    assert outcomes == {expected}


def test_seeds_and_splits_give_different_demonstrations() -> None:
    task = Arithmetic()
    assert task.demonstrations("train", 50, seed=0) != task.demonstrations("train", 50, seed=1)
    asked = {str(chat[:-1]) for chat in task.demonstrations("validation", 500, seed=0)}
    assert asked <= {str(prompt.messages) for prompt in task.prompts("validation")}


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="between 0 and 1, got 2"):
        Strings("sloppy", sloppy_right_fraction=2.0)
    with pytest.raises(ValueError, match="`num_questions`"):
        Strings(num_questions=10**9)
