from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_opd.data.evaluation import first_of_each_domain
from lightning_opd.data.prompt_loader import PromptBatches, PromptLoader
from lightning_opd.types import Prompt, PromptBatch, Split


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


@given(st.integers(1, 3), st.sampled_from([None, 1, 2]), st.booleans())
def test_the_upcoming_rollout_batch_is_the_next_that_is_delivered(
    micro_batches: int,
    limit: int | None,
    is_repeating: bool,  # drawn by hypothesis
) -> None:
    loader = PromptLoader(prompts(12), 4, micro_batches, batches_per_epoch=limit, is_repeating=is_repeating)
    expected: PromptBatch | None = None
    for _ in range(3):
        for i, batch in enumerate(loader):
            if batch.micro_batch == 0:
                if expected is not None:
                    assert (batch.index, batch.prompts, batch.rows) == (expected.index, expected.prompts, expected.rows)
                expected = loader.upcoming()
            if limit is not None and i + 1 == limit * micro_batches:
                break
    assert expected is not None


@given(st.integers(0, 14), st.integers(1, 3), st.sampled_from([None, 1, 2]))
def test_a_restored_loader_goes_on_with_the_next_micro_batch(stop: int, micro_batches: int, limit: int | None) -> None:
    def stream(loader: PromptLoader) -> Iterator[PromptBatch]:
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


def iter_rest(loader: PromptLoader) -> Iterator[PromptBatch]:
    """A new pass for each micro-batch: the loader's own state says where to go on."""
    while True:
        yield next(iter(loader))


def test_evaluation_gives_every_rank_the_same_number_of_batches() -> None:
    parts: list[tuple[Split, str, list[Prompt]]] = [("train", "sampled", prompts(7)), ("test", "greedy", prompts(3))]
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
