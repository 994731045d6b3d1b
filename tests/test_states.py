"""Hidden states of response tokens, stored once."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path

import pytest
import torch

from lightning_opd.collection.collate import split
from lightning_opd.data.resume_state import as_mapping, from_mapping
from lightning_opd.objectives import DistributionMatching
from lightning_opd.types import ResponseStates, RolloutBatch
from tests.world import Recorder, make_data, make_module, make_trainer


def two_teachers() -> tuple[torch.Tensor, torch.Tensor, ResponseStates]:
    """States of four rows, which two teachers of unequal width take turns with; tokens 0 and 1 are prompt."""
    states, mask = torch.randn(4, 6, 5), torch.arange(6) < torch.tensor([6, 3, 4, 2])[:, None]
    mask[:, :2] = False
    stored = ResponseStates.empty(mask.shape, mask.device)
    for teacher, width in enumerate((3, 5)):
        rows, columns = torch.arange(teacher, 4, 2), slice(0, int(mask[teacher::2].sum(1).max()) + 2)
        here = mask[rows][:, columns]
        own = ResponseStates.of(states[rows][:, columns, :width][here], here)
        stored = stored.with_teacher(rows, columns, own)
    return states, mask, stored


def check(stored: ResponseStates, states: torch.Tensor, mask: torch.Tensor, teachers: list[int]) -> None:
    assert torch.equal(stored.index > 0, mask)
    for row, teacher in enumerate(teachers):
        columns = torch.arange(mask.shape[1])
        got = stored.at(teacher, torch.full_like(columns, row), columns)
        expected = states[row, :, : (3, 5)[teacher]] * mask[row][:, None]
        assert torch.equal(got, expected)
        assert not stored.at(1 - teacher, torch.full_like(columns, row), columns).any()


def test_every_teacher_keeps_its_width_and_prompts_and_padding_have_no_states() -> None:
    states, mask, stored = two_teachers()
    check(stored, states, mask, [0, 1, 0, 1])
    assert [tuple(values.shape) for values in stored.values] == [(6, 3), (1, 5)]
    assert stored.num_stored == int(mask.sum())


def test_selected_moved_and_padded_tokens_have_the_same_states_in_memory() -> None:
    states, mask, stored = two_teachers()
    rows = torch.tensor([2, 1])

    def moved(x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.pad(x[rows][:, :5], (0, 0) * (x.ndim - 2) + (1, 2))

    part = stored.map(moved)
    check(part, moved(states), moved(mask), [0, 1])
    assert all(a.data_ptr() == b.data_ptr() for a, b in zip(part.values, stored.values, strict=True))
    small = part.compact()
    check(small, moved(states), moved(mask), [0, 1])
    assert [len(values) for values in small.values] == [2, 1]


def test_a_teacher_without_states_or_rows_takes_no_memory() -> None:
    _, mask, stored = two_teachers()
    more = stored.with_teacher(torch.tensor([3]), slice(0, 6), None)
    none = torch.zeros(0, dtype=torch.long)
    assert more.at(2, none, none).shape[0] == 0
    assert more.compact().num_stored == int(mask.sum())

    def is_broken(values: torch.Tensor) -> torch.Tensor:
        return values.isnan().any(dim=-1)

    assert not more.marked(is_broken).any()
    broken = dataclasses.replace(more, values=(more.values[0] * torch.nan, *more.values[1:]))
    of_the_first = torch.tensor([True, False, True, False])[:, None]
    assert torch.equal(broken.marked(is_broken), mask & of_the_first)


@pytest.fixture(scope="module")
def rollouts(world: Path, tmp_path_factory: pytest.TempPathFactory) -> RolloutBatch:
    """A rollout batch of two teachers, each with states of its own rows."""
    recorder = Recorder()
    trainer = make_trainer(tmp_path_factory.mktemp("states"), recorder, max_steps=1)
    trainer.fit(make_module(world, DistributionMatching()), make_data())
    return recorder.rollout_batches[0]


def test_a_rollout_batch_has_one_state_for_each_response_token(rollouts: RolloutBatch) -> None:
    assert rollouts.teacher_scores is not None
    states = rollouts.teacher_scores.hidden_states
    assert states is not None
    counts = [int(rollouts.response_mask[rollouts.teacher_ids == index].sum()) for index in (0, 1)]
    assert [tuple(values.shape) for values in states.values] == [(count, 32) for count in counts]
    assert torch.equal(states.index > 0, rollouts.response_mask)


def test_saved_micro_batches_hold_their_own_states_alone(rollouts: RolloutBatch) -> None:
    parts = split(rollouts, 2, 2, lambda x: x)
    sizes = []
    for part in parts:
        file = io.BytesIO()
        torch.save(as_mapping(part), file)
        file.seek(0)
        back = from_mapping(torch.load(file, weights_only=True), torch.device("cpu"))
        assert part.teacher_scores is not None
        assert back.teacher_scores is not None
        mine, theirs = part.teacher_scores.hidden_states, back.teacher_scores.hidden_states
        assert mine is not None
        assert theirs is not None
        for row, teacher in enumerate(part.teacher_ids.tolist()):
            columns = part.response_mask[row].nonzero().squeeze(-1)
            at = teacher, torch.full_like(columns, row), columns
            assert torch.equal(mine.at(*at), theirs.at(*at))
        sizes.append(theirs.num_stored)
    assert sizes == [int(part.response_mask.sum()) for part in parts]
