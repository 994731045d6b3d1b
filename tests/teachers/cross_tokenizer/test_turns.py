from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from lightning_opd.functional.credit import Credit, ExactMatchCredit, PrefixCredit, SequenceCredit, SpanCredit
from lightning_opd.models import load_tokenizer
from lightning_opd.teachers import LocalTeacher
from lightning_opd.tokenization.chat import render_prompt
from lightning_opd.types import RolloutBatch, Sampling, Signal, Trajectory
from tests.agents import RandomEngine, ScriptedChat
from tests.teachers.cross_tokenizer.foreign import CPU, foreign_teacher
from tests.world import collate, run_episodes

LOGPROBS = frozenset({Signal.LOGPROBS})
TOOLS = ({"type": "function", "function": {"name": "talk", "parameters": {"type": "object", "properties": {}}}},)


def rollouts(world: Path, trajectories: list[Trajectory]) -> RolloutBatch:
    pad = load_tokenizer(str(world / "student")).pad_token_id
    rows = list(range(len(trajectories)))
    return collate(trajectories, rows, [0] * len(rows), ["math"], 1.0, pad, torch.float32, CPU)


@pytest.fixture
def episodes(world: Path) -> list[Trajectory]:
    """Episodes of one or two turns with a tool, whose replies are anything at all."""
    tokenizer, task = load_tokenizer(str(world / "student")), ScriptedChat(6, turns=2)
    prompts = [
        dataclasses.replace(prompt, messages=({**prompt.messages[0], "tools": TOOLS}, *prompt.messages[1:]))
        for prompt in task.prompts("train")
    ]
    sampling = Sampling(max_new_tokens=6, stop_token_ids=(int(tokenizer.eos_token_id),), vocab_size=len(tokenizer))
    return run_episodes(task, prompts, RandomEngine(len(tokenizer)), tokenizer, list(range(6)), sampling, 10_000)


def test_the_chat_before_each_reply_is_rendered_by_the_teachers_template(
    world: Path, foreign: Path, episodes: list[Trajectory]
) -> None:
    teacher, batch = foreign_teacher(world, foreign), rollouts(world, episodes)
    views = teacher.views(batch)
    turns = [turn for trajectory in episodes for turn in trajectory.turns]
    assert [len(trajectory.turns) for trajectory in episodes] == [1, 2] * 3
    assert len(views) == len(turns)
    own = load_tokenizer(str(foreign))
    for view, turn in zip(views, turns, strict=True):
        prompt = render_prompt(own, turn.messages)
        assert view.token_ids[: len(prompt)] == prompt
        assert not any(view.response_mask[: len(prompt)])
        assert view.columns.tolist() == list(range(turn.start, turn.end))
        assert '"name": "talk"' in own.decode(prompt)


@pytest.mark.parametrize("credit", [ExactMatchCredit(), SpanCredit(), PrefixCredit()], ids=str)
def test_every_turn_is_scored_as_if_it_stood_alone(
    credit: Credit, world: Path, foreign: Path, episodes: list[Trajectory]
) -> None:
    teacher, batch = foreign_teacher(world, foreign, credit), rollouts(world, episodes)
    scores = teacher.score(batch, LOGPROBS)
    assert not (scores.aligned_mask & ~batch.response_mask).any()
    assert scores.aligned_mask.any(dim=1).all()
    for row, trajectory in enumerate(episodes):
        alone = [
            dataclasses.replace(
                trajectory,
                prompt=dataclasses.replace(trajectory.prompt, messages=turn.messages),
                token_ids=trajectory.token_ids[turn.start : turn.end],
                response_mask=trajectory.response_mask[turn.start : turn.end],
                logprobs=trajectory.logprobs[turn.start : turn.end],
                turns=(),
            )
            for turn in trajectory.turns
        ]
        single = teacher.score(rollouts(world, alone), LOGPROBS)
        for i, turn in enumerate(trajectory.turns):
            length, place = turn.end - turn.start, slice(turn.start, turn.end)
            assert torch.equal(scores.aligned_mask[row, place], single.aligned_mask[i, :length])
            torch.testing.assert_close(scores.logprobs[row, place], single.logprobs[i, :length], atol=1e-4, rtol=1e-4)


def test_the_sequence_credit_is_that_of_all_turns(world: Path, foreign: Path, episodes: list[Trajectory]) -> None:
    teacher, batch = foreign_teacher(world, foreign, SequenceCredit()), rollouts(world, episodes)
    scores = teacher.score(batch, LOGPROBS)
    log_ratio = scores.logprobs - batch.rollout_logprobs
    for row in range(len(episodes)):
        counted = scores.aligned_mask[row]
        assert torch.equal(counted, batch.response_mask[row]) or not counted.any()
        if counted.any():
            assert float(log_ratio[row, counted].std(unbiased=False)) < 1e-3
    assert scores.aligned_mask.any()


def test_with_one_tokenizer_episodes_are_scored_to_the_last_bit(world: Path, episodes: list[Trajectory]) -> None:
    batch, plain = rollouts(world, episodes), LocalTeacher(str(world / "math"))
    plain.setup(CPU)
    expected = plain.score(batch, LOGPROBS)
    for credit in (ExactMatchCredit(), SpanCredit(), SpanCredit("proportional"), PrefixCredit()):
        scores = foreign_teacher(world, world / "math", credit).score(batch, LOGPROBS)
        assert torch.equal(scores.logprobs, expected.logprobs)
        assert torch.equal(scores.aligned_mask, expected.aligned_mask)
