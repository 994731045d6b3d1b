from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_opd.collection.collate import balanced_parts, split
from lightning_opd.types import Prompt, RolloutBatch, Trajectory
from tests.world import collate


@given(st.lists(st.integers(1, 50), min_size=1, max_size=40), st.integers(1, 6))
def test_balanced_parts_hold_every_row_once_and_are_even(lengths: list[int], num_parts: int) -> None:
    num_parts = min(num_parts, len(lengths))
    parts = balanced_parts(lengths, num_parts)
    assert sorted(row for part in parts for row in part) == list(range(len(lengths)))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    if len(lengths) % num_parts == 0:
        totals = [sum(lengths[row] for row in part) for part in parts]
        assert max(totals) - min(totals) <= max(lengths) - min(lengths)


def rollouts(lengths: list[int]) -> RolloutBatch:
    trajectories = []
    for i, length in enumerate(lengths):
        mask = (False, *(True,) * length)
        trajectories.append(
            Trajectory(
                Prompt((), str(i), "t", "t"), (7, *range(length)), mask, (0.0,) * (length + 1), "", is_truncated=False
            )
        )
    rows = list(range(len(lengths)))
    return collate(trajectories, rows, [0] * len(rows), ["t"], 1.0, 99, torch.float32, torch.device("cpu"))


def test_a_collated_rollout_batch_holds_every_token_once() -> None:
    batch = rollouts([3, 1, 2])
    assert batch.token_ids.tolist() == [[7, 0, 1, 2], [7, 0, 99, 99], [7, 0, 1, 99]]
    assert batch.attention_mask.sum(1).tolist() == [4, 2, 3]
    assert batch.response_mask.tolist() == [
        [False, True, True, True],
        [False, True, False, False],
        [False, True, True, False],
    ]
    assert batch.num_active_tokens == 6
    assert batch.num_trajectories == 3


def test_a_split_rollout_batch_loses_nothing_and_keeps_the_update_denominators() -> None:
    batch = rollouts([5, 1, 4, 2, 3, 3])
    batch.metrics = {"x": (torch.tensor(1.0), torch.tensor(1.0))}
    parts = split(batch, 2, 2, lambda x: x)
    assert sorted(len(part) for part in parts) == [1, 1, 2, 2]
    assert sum(int(part.response_mask.sum()) for part in parts) == 18
    for first, second in (parts[:2], parts[2:]):
        tokens = first.response_mask.sum() + second.response_mask.sum()
        assert first.num_active_tokens == second.num_active_tokens == tokens
    assert [bool(part.metrics) for part in parts] == [True, False, False, False]
    assert {t.prompt.key for part in parts for t in part.trajectories} == set("012345")


def test_selected_rows_are_cut_to_the_columns_they_use() -> None:
    batch = rollouts([5, 1, 2])
    part = batch.select(torch.tensor([2, 1]))
    assert part.token_ids.tolist() == [[7, 0, 1], [7, 0, 99]]
    assert part.group_ids.tolist() == [2, 1]
    assert [t.prompt.key for t in part.trajectories] == ["2", "1"]
