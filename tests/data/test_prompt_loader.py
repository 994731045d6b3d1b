from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_opd.data.collate import balanced_parts, collate, cut
from lightning_opd.data.evaluation import first_of_each_domain
from lightning_opd.data.prompt_loader import PromptBatches, PromptLoader
from lightning_opd.types import Prompt, RolloutBatch, Trajectory


def prompts(count: int) -> list[Prompt]:
    return [Prompt((), str(i), "t", "ab"[i % 2]) for i in range(count)]


def keys(loader: PromptLoader) -> list[tuple[int, int, tuple[str, ...]]]:
    return [(b.index, b.micro_batch, tuple(p.key for p in b.prompts)) for b in loader]


def test_rollout_batches_have_a_length_and_drop_the_incomplete_last_one() -> None:
    loader = PromptLoader(prompts(11), 4, micro_batches=2)
    assert len(loader) == 4
    seen = keys(loader)
    assert [(w, m) for w, m, _ in seen] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert len({key for _, _, index in seen for key in index}) == 8
    assert len(PromptLoader(prompts(4), 4)) == 1
    with pytest.raises(ValueError, match="only 3 training prompts"):
        PromptLoader(prompts(3), 4)


def test_every_epoch_has_its_own_order_unless_it_repeats() -> None:
    shuffled, repeating = PromptLoader(prompts(8), 4), PromptLoader(prompts(8), 4, is_repeating=True)
    assert [k for _, _, k in keys(shuffled)] != [k for _, _, k in keys(shuffled)]
    assert [k for _, _, k in keys(repeating)] == [k for _, _, k in keys(repeating)]
    assert [w for w, _, _ in keys(shuffled)] == [4, 5], "rollout batches are counted over epochs"


def test_ranks_share_out_each_rollout_batch() -> None:
    whole = keys(PromptLoader(prompts(12), 4, seed=3))
    fractions = [keys(PromptLoader(prompts(12), 4, seed=3, rank=rank, num_ranks=2)) for rank in range(2)]
    for (_, _, index), (_, _, even), (_, _, odd) in zip(whole, *fractions, strict=True):
        assert index[0::2] == even
        assert index[1::2] == odd


@given(st.integers(0, 14), st.integers(1, 3), st.sampled_from([None, 1, 2]))
def test_a_restored_loader_goes_on_with_the_next_micro_batch(stop: int, micro_batches: int, limit: int | None) -> None:
    def stream(loader: PromptLoader):  # noqa: ANN202
        """As Lightning reads it: epoch after epoch, each cut off at the limit."""
        while True:
            for i, batch in enumerate(loader):
                yield batch
                if limit is not None and i + 1 == limit * micro_batches:
                    break

    def make() -> PromptLoader:
        return PromptLoader(prompts(12), 4, micro_batches, batches_per_epoch=limit)

    whole = make()
    expected = [(b.index, b.micro_batch, b.prompts) for b, _ in zip(stream(whole), range(24), strict=False)]
    first = make()
    for _ in zip(range(stop), stream(first), strict=False):
        pass
    again = make()
    again.load_state_dict(first.state_dict())
    limit = None if limit is None else limit  # the rest of a limited epoch is Lightning's to count
    rest = stream(again) if limit is None else iter_rest(again)
    got = [(b.index, b.micro_batch, b.prompts) for b, _ in zip(rest, range(24 - stop), strict=False)]
    assert got == expected[stop:]


def iter_rest(loader: PromptLoader):  # noqa: ANN201
    """A new pass for each micro-batch: the loader's own state says where to go on."""
    while True:
        yield next(iter(loader))


def test_evaluation_gives_every_rank_the_same_number_of_batches() -> None:
    parts = [("train", "sampled", prompts(7)), ("test", "greedy", prompts(3))]
    ranks = [PromptBatches(parts, 2, rank, 2) for rank in range(2)]
    assert len(ranks[0]) == len(ranks[1]) == 3
    seen = [(b.split, b.mode, p.key) for rank in ranks for b in rank for p in b.prompts[: b.num_real]]
    assert sorted(seen) == sorted((split, mode, p.key) for split, mode, chosen in parts for p in chosen)
    for one, two in zip(*ranks, strict=True):
        assert len(one.prompts) == len(two.prompts)


def test_the_first_prompts_of_each_domain_are_taken() -> None:
    assert [p.key for p in first_of_each_domain(prompts(9), 2)] == ["0", "1", "2", "3"]
    assert [p.key for p in first_of_each_domain(prompts(9), {"b": 1})] == ["1"]
    assert len(first_of_each_domain(prompts(9), None)) == 9


@given(st.lists(st.integers(1, 50), min_size=1, max_size=40), st.integers(1, 6))
def test_balanced_parts_hold_every_row_once_and_are_even(lengths: list[int], num_parts: int) -> None:
    num_parts = min(num_parts, len(lengths))
    parts = balanced_parts(lengths, num_parts)
    assert sorted(row for part in parts for row in part) == list(range(len(lengths)))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    if len(lengths) % num_parts == 0:
        totals = [sum(lengths[row] for row in part) for part in parts]
        assert max(totals) - min(totals) <= max(lengths) - min(lengths)


def index(lengths: list[int]) -> RolloutBatch:
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
    batch = index([3, 1, 2])
    assert batch.token_ids.tolist() == [[7, 0, 1, 2], [7, 0, 99, 99], [7, 0, 1, 99]]
    assert batch.attention_mask.sum(1).tolist() == [4, 2, 3]
    assert batch.response_mask.tolist() == [
        [False, True, True, True],
        [False, True, False, False],
        [False, True, True, False],
    ]
    assert batch.num_active_tokens == 6
    assert batch.num_trajectories == 3


def test_a_cut_rollout_batch_loses_nothing_and_keeps_the_update_denominators() -> None:
    batch = index([5, 1, 4, 2, 3, 3])
    batch.metrics = {"x": (torch.tensor(1.0), torch.tensor(1.0))}
    parts = cut(batch, num_updates=2, num_micro_batches=2)
    assert sorted(len(part) for part in parts) == [1, 1, 2, 2]
    assert sum(int(part.response_mask.sum()) for part in parts) == 18
    for first, second in (parts[:2], parts[2:]):
        tokens = first.response_mask.sum() + second.response_mask.sum()
        assert first.num_active_tokens == second.num_active_tokens == tokens
    assert [bool(part.metrics) for part in parts] == [True, False, False, False]
    assert {t.prompt.key for part in parts for t in part.trajectories} == set("012345")


def test_selected_rows_are_cut_to_the_columns_they_use() -> None:
    batch = index([5, 1, 2])
    part = batch.select(torch.tensor([2, 1]))
    assert part.token_ids.tolist() == [[7, 0, 1], [7, 0, 99]]
    assert part.group_ids.tolist() == [2, 1]
    assert [t.prompt.key for t in part.trajectories] == ["2", "1"]
