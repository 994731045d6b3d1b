from __future__ import annotations

import dataclasses
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_opd.tasks import Arithmetic, Curriculum, Mixture, Phase, Strings
from lightning_opd.tasks.mixture import interleave
from lightning_opd.types import Trajectory

PLUS, LETTERS = Arithmetic(), Strings(num_questions=600)


def mixture() -> Mixture:
    return Mixture({"plus": PLUS, "letters": LETTERS})


def right_reply(prompt_answer: object, tool: str) -> str:
    return f'<think>x</think><tool_call>{{"name": "{tool}", "arguments": {{"result": "{prompt_answer}"}}}}</tool_call>'


def test_prompts_carry_their_tasks_name_as_teacher_and_domain() -> None:
    prompts = mixture().prompts("validation")
    assert {(p.teacher, p.domain) for p in prompts} == {("plus", "plus"), ("letters", "letters")}
    assert {p.key for p in prompts} == {p.key for t in (PLUS, LETTERS) for p in t.prompts("validation")}


def test_every_stretch_holds_the_tasks_in_proportion() -> None:
    prompts = mixture().prompts("train")
    fraction = len(PLUS.prompts("train")) / len(prompts)
    for start in range(0, len(prompts) - 200, 200):
        seen = Counter(p.domain for p in prompts[start : start + 200])
        assert seen["plus"] / 200 == pytest.approx(fraction, abs=0.02)


def test_outcomes_and_format_rules_are_those_of_the_prompts_own_task() -> None:
    task = mixture()
    for prompt in task.prompts("test")[:50]:
        own, foreign = ("calc", "text") if prompt.domain == "plus" else ("text", "calc")
        for tool, is_right in ((own, True), (foreign, False)):
            text = right_reply(prompt.columns["answer"], tool)
            assert task.reward(prompt, text) == is_right
            trajectory = Trajectory(prompt, (), (), (), text, is_truncated=False)
            broken = [rule.name for rule in task.format_rules() if rule.is_broken(trajectory)]
            assert broken == ([] if is_right else ["unknown_tool"])


def test_rules_are_counted_under_one_name_each() -> None:
    names = [rule.name for rule in mixture().format_rules()]
    assert sorted(names) == sorted({rule.name for task in (PLUS, LETTERS) for rule in task.format_rules()})


def test_demonstrations_are_shared_out_equally_and_mixed() -> None:
    chats = mixture().demonstrations("train", 101, seed=0)
    is_sum = ["What is" in str(chat[0]["content"]) for chat in chats]
    assert sum(is_sum) == 51
    assert {sum(is_sum[i : i + 10]) for i in range(0, 100, 10)} <= {4, 5, 6}


def test_a_task_may_be_taken_out_with_null() -> None:
    task = Mixture({"plus": PLUS, "letters": None})  # as a later YAML writes it
    assert {p.domain for p in task.prompts("test")} == {"plus"}
    with pytest.raises(ValueError, match="name at least one task"):
        Mixture({})


def test_a_prompt_of_no_known_task_is_an_error_that_names_the_cure() -> None:
    prompt = dataclasses.replace(PLUS.prompts("test")[0], domain="chess")
    with pytest.raises(ValueError, match=r"`chess` reached a Mixture of \['letters', 'plus'\].*name all tasks in one"):
        mixture().reward(prompt, "")


def test_a_curriculum_demonstrates_its_phases_one_after_the_other() -> None:
    task = Curriculum([Phase(PLUS, 0.75), Phase(LETTERS, 0.25)])
    chats = task.demonstrations("train", 40, seed=0)
    assert ["What is" in str(chat[0]["content"]) for chat in chats] == [True] * 30 + [False] * 10
    assert task.prompts("test") == PLUS.prompts("test")
    assert [rule.name for rule in task.format_rules()] == [rule.name for rule in PLUS.format_rules()]


def test_phases_of_one_task_do_not_repeat_each_other() -> None:
    chats = Curriculum([Phase(PLUS, 0.5), Phase(PLUS, 0.5)]).demonstrations("train", 40, seed=0)
    assert chats[:20] != chats[20:]


@pytest.mark.parametrize("fractions", [[], [0.5], [0.5, 0.6], [1.5, -0.5]])
def test_shares_must_add_up(fractions: list[float]) -> None:
    with pytest.raises(ValueError, match="add up to 1"):
        Curriculum([Phase(PLUS, fraction) for fraction in fractions])


@given(st.lists(st.lists(st.integers(), max_size=30), max_size=4))
def test_interleaving_keeps_every_item_and_each_order(parts: list[list[int]]) -> None:
    tagged = [[(i, item) for item in part] for i, part in enumerate(parts)]
    mixed = interleave(tagged)
    assert [[entry for entry in mixed if entry[0] == i] for i in range(len(parts))] == tagged
    assert len(mixed) == sum(map(len, parts))
