from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from lightning_opd.errors import ConfigError
from lightning_opd.interfaces import Teacher
from lightning_opd.models import load_causal_lm, load_tokenizer
from lightning_opd.teachers import LocalTeacher, PrivilegedTeacher, TeacherPool
from lightning_opd.tokenization.chat import render_prompt
from lightning_opd.types import TEMPLATE_SETTINGS, Messages, Prompt, RolloutBatch, Signal, Trajectory
from tests.world import collate

CPU = torch.device("cpu")
EVERYTHING = frozenset(Signal)
RESPONSES = ((40, 41, 42, 1), (50, 1), (60, 61, 62))


def prompt(index: int) -> Prompt:
    content = "short" if index % 2 else "a rather longer question"
    return Prompt(({"role": "user", "content": content},), str(index), "t", "t", {"answer": f"{index}" * (index + 1)})


def rollouts(folder: Path) -> RolloutBatch:
    tokenizer = load_tokenizer(str(folder))
    trajectories = []
    for index, response in enumerate(RESPONSES):
        ids = render_prompt(tokenizer, prompt(index).messages)
        mask = (False,) * len(ids) + (True,) * len(response)
        trajectories.append(
            Trajectory(prompt(index), (*ids, *response), mask, (0.0,) * len(mask), "", is_truncated=False)
        )
    return collate(trajectories, [0, 1, 2], [0, 0, 0], ("t",), 0.7, 0, torch.float32, CPU)


def ready(teacher: Teacher) -> Teacher:
    teacher.setup(CPU)
    return teacher


def test_the_student_reads_its_own_prompt_and_the_teacher_the_hint(tiny_model_dir: Path) -> None:
    """Every score equals one forward of the model over the hinted prompt and the very same response."""
    teacher = PrivilegedTeacher(LocalTeacher(str(tiny_model_dir), top_k=5), "{content} It is {answer}.")
    ready(teacher)
    batch = rollouts(tiny_model_dir)
    scores = teacher.score(batch, EVERYTHING)
    model, tokenizer = load_causal_lm(str(tiny_model_dir)).eval(), load_tokenizer(str(tiny_model_dir))
    head = teacher.output_head()
    assert head is not None
    for row, response in enumerate(RESPONSES):
        ids = render_prompt(tokenizer, teacher.messages(prompt(row), prompt(row).messages))
        with torch.no_grad():
            logits = model(torch.tensor([[*ids, *response]])).logits[0, len(ids) - 1 : -1] / 0.7
        logprobs = torch.log_softmax(logits, -1)
        own = batch.response_mask[row]
        expected = logprobs.gather(-1, torch.tensor(response)[:, None]).squeeze(-1)
        torch.testing.assert_close(scores.logprobs[row, own], expected, atol=1e-5, rtol=0)
        assert scores.top_logprobs is not None
        torch.testing.assert_close(scores.top_logprobs[row, own], logprobs.topk(5).values, atol=1e-5, rtol=0)
        assert scores.hidden_states is not None
        columns = own.nonzero().squeeze(-1)
        states = scores.hidden_states.at(0, torch.full_like(columns, row), columns)
        from_states = torch.log_softmax(head.logits(states) / 0.7, -1)
        torch.testing.assert_close(from_states, logprobs, atol=1e-5, rtol=0)
    assert torch.equal(scores.aligned_mask, batch.response_mask)
    assert not scores.logprobs[~batch.response_mask].any()


def test_a_context_that_adds_nothing_is_the_plain_teacher(tiny_model_dir: Path) -> None:
    batch = rollouts(tiny_model_dir)
    plain = ready(LocalTeacher(str(tiny_model_dir))).score(batch, EVERYTHING)
    same = ready(PrivilegedTeacher(LocalTeacher(str(tiny_model_dir)), "{content}")).score(batch, EVERYTHING)
    torch.testing.assert_close(same.logprobs, plain.logprobs)
    assert torch.equal(same.aligned_mask, plain.aligned_mask)


@pytest.mark.parametrize(
    ("before", "expected"),
    [((), "Add 7. "), (({"role": "system", "content": "Be brief."},), "Add 7. Be brief.")],
    ids=["none", "its own"],
)
def test_the_teacher_has_a_system_prompt_of_its_own(before: Messages, expected: str, tiny_model_dir: Path) -> None:
    row = dataclasses.replace(prompt(1), columns={"n": "7"})
    chat = (*before, *row.messages, {"role": "assistant", "content": "42"}, {"role": "user", "content": "sure?"})
    teacher = PrivilegedTeacher(LocalTeacher(str(tiny_model_dir)), system_prompt="Add {n}. {content}")
    shown = teacher.messages(row, chat)
    assert shown == [{"role": "system", "content": expected}, *chat[len(before) :]]
    plain = ready(LocalTeacher(str(tiny_model_dir))).score(rollouts(tiny_model_dir), EVERYTHING)
    told = ready(PrivilegedTeacher(LocalTeacher(str(tiny_model_dir)), system_prompt="Say no."))
    batch = rollouts(tiny_model_dir)
    scores = told.score(batch, EVERYTHING)
    assert (scores.logprobs - plain.logprobs)[batch.response_mask].abs().min() > 1e-3


def test_a_system_prompt_is_part_of_what_a_teacher_is_and_braces_are_explained() -> None:
    def make(system_prompt: str | None) -> PrivilegedTeacher:
        return PrivilegedTeacher(LocalTeacher("x"), system_prompt=system_prompt)

    assert len({make("a").identity, make("b").identity, make(None).identity}) == 3
    with pytest.raises(ValueError, match=r"needs the columns \['n'\], which the prompt 0 lacks"):
        make("{n}").messages(prompt(0), prompt(0).messages)
    with pytest.raises(ConfigError, match=r"Write a brace as \{\{ or \}\}"):
        make('Answer as {"answer": 1')


def test_tools_settings_and_parts_of_a_chat_survive_a_prompt_of_its_own() -> None:
    settings = {"tools": [{"name": "now"}], TEMPLATE_SETTINGS: {"enable_thinking": False}}
    chat = ({"role": "user", "content": [{"type": "text", "text": "Hi"}], **settings},)
    teacher = PrivilegedTeacher(LocalTeacher("x"), "{content} {answer}", "Be brief.")
    system, user = teacher.messages(prompt(1), chat)
    assert system == {"role": "system", "content": "Be brief.", **settings}
    assert user == {"role": "user", "content": "Hi 11"}


def test_a_rank_without_rows_takes_part(tiny_model_dir: Path) -> None:
    teacher = ready(PrivilegedTeacher(LocalTeacher(str(tiny_model_dir)), "{content} {answer}"))
    none = rollouts(tiny_model_dir).select(torch.zeros(0, dtype=torch.long))
    assert teacher.score(none, frozenset({Signal.LOGPROBS})).logprobs.shape[0] == 0


def test_a_missing_column_is_named_with_those_that_are_there(tiny_model_dir: Path) -> None:
    teacher = ready(PrivilegedTeacher(LocalTeacher(str(tiny_model_dir)), "{content} {hint}"))
    with pytest.raises(ValueError, match=r"needs the columns \['hint'\], which the prompt 0 lacks.*are \['answer'\]"):
        teacher.score(rollouts(tiny_model_dir), frozenset())
    with pytest.raises(ValueError, match=r"needs a user message, which the prompt 0 lacks"):
        PrivilegedTeacher(LocalTeacher("x"), "{content}").messages(prompt(0), ({"role": "system", "content": "s"},))
    with pytest.raises(ValueError, match=r"\{content\}"):
        PrivilegedTeacher(LocalTeacher("x"), "Hint: {answer}")


def test_teachers_of_one_model_are_shared_only_if_they_read_the_same(tiny_model_dir: Path) -> None:
    def make(context: str, folder: Path = tiny_model_dir) -> PrivilegedTeacher:
        return PrivilegedTeacher(LocalTeacher(str(folder)), context)

    hinted, again, bare = make("{content} {answer}"), make("{content} {answer}"), make("{content}")
    assert hinted.identity == again.identity
    assert len({hinted.identity, bare.identity, make("{content}", tiny_model_dir / "x").identity}) == 3
    assert bare.identity != LocalTeacher(str(tiny_model_dir)).identity
    pool = TeacherPool({"a": hinted, "b": again, "c": bare})
    assert list(pool.distinct) == ["a", "c"]


def test_a_trajectory_longer_than_the_teachers_context_is_refused(tiny_model_dir: Path) -> None:
    teacher = ready(PrivilegedTeacher(LocalTeacher(str(tiny_model_dir)), "{content}" + " very long" * 200))
    with pytest.raises(ValueError, match="256 positions of teacher"):
        teacher.score(rollouts(tiny_model_dir), frozenset())
