from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from lightning_opd.rollouts.growing_cache import CachePart, can_join, joined, retire
from tests.architectures import tiny_architecture

HEADS, DIM, LAYERS = 2, 3, 2


def states(rows: int, columns: int) -> Tensor:
    return torch.randn(rows, HEADS, columns, DIM)


def filled(rows: int, columns: int) -> DynamicCache:
    cache = DynamicCache()
    for layer in range(LAYERS):
        cache.update(states(rows, columns), states(rows, columns), layer)
    return cache


def keys(cache: DynamicCache, layer: int = 0) -> Tensor:
    found = cache.layers[layer]
    assert isinstance(found, DynamicLayer)
    assert found.keys is not None
    return found.keys


def test_appended_columns_are_those_of_a_cache_that_copies() -> None:
    theirs = filled(5, 7)
    ours = joined([CachePart(copy.deepcopy(theirs))], 9)
    for num_new in (1, 1, 1, 4, 1, 30, 1):  # beyond the limit, too
        for layer in range(LAYERS):
            new = states(5, num_new), states(5, num_new)
            for one, other in zip(ours.update(*new, layer), theirs.update(*new, layer), strict=True):
                assert torch.equal(one, other)
        assert ours.get_seq_length() == theirs.get_seq_length()
        assert ours.get_mask_sizes(1, 0) == theirs.get_mask_sizes(1, 0)


def test_a_token_copies_no_column_before_it() -> None:
    cache = joined([CachePart(filled(4, 10))], 100)
    moves, place = 0, keys(cache).data_ptr()
    for _ in range(90):
        for layer in range(LAYERS):
            cache.update(states(4, 1), states(4, 1), layer)
        moves, place = moves + (keys(cache).data_ptr() != place), keys(cache).data_ptr()
    assert keys(cache).shape[-2] == 100
    assert moves <= 6, "10 to 100 columns by halves"
    assert keys(cache).untyped_storage().nbytes() == 4 * HEADS * 100 * DIM * 4, "and not beyond what is needed"


@pytest.mark.parametrize("kept", [[0, 1, 2, 3, 4, 5], [0, 2, 5], [3, 4, 5], [0], [5], [1, 2, 4, 5]], ids=str)
def test_rows_that_leave_are_replaced_by_the_last_ones(kept: list[int]) -> None:
    cache = joined([CachePart(filled(6, 4))], 12)
    before, place = keys(cache, 1).clone(), keys(cache, 1).data_ptr()
    order = retire(cache, torch.tensor(kept), len(kept))
    assert sorted(order.tolist()) == kept
    assert torch.equal(keys(cache, 1), before[order])
    assert keys(cache, 1).data_ptr() == place, "in their place"
    assert [i for i, row in enumerate(order.tolist()) if i in kept and row != i] == [], "what need not move stays"
    cache.update(states(len(kept), 1), states(len(kept), 1), 1)
    assert torch.equal(keys(cache, 1)[:, :, :4], before[order])
    cache.reorder_cache(torch.tensor([0, 0]))  # type: ignore[arg-type]  # a LongTensor
    assert torch.equal(keys(cache, 1)[:, :, :4], before[order[[0, 0]]])


def test_joined_rows_end_at_one_column_and_nothing_that_is_not_finite_stands_before_them() -> None:
    old, new = filled(2, 9), filled(3, 4)
    expected, added = keys(old)[:, :, 3:].clone(), keys(new)[[0, 0, 2]]
    cache = joined([CachePart(old, None, 3), CachePart(new, torch.tensor([0, 0, 2]))], 50)
    assert torch.equal(keys(cache)[:2], expected)
    assert torch.equal(keys(cache)[2:, :, 2:], added)
    assert not keys(cache)[2:, :, :2].any()


@pytest.mark.parametrize(
    ("name", "possible"), [("llama", True), ("gemma3_text", False), ("lfm2", False), ("deepseek_v3", True)]
)
def test_rows_join_only_where_every_layer_keeps_all_keys_and_values(name: str, possible: bool) -> None:
    assert can_join(DynamicCache(config=tiny_architecture(name).config)) == possible
