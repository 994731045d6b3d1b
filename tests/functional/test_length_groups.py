from __future__ import annotations

from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_opd.functional.length_groups import FORWARD_COST, budgeted_groups, neighbour_groups, padded_tokens

Lengths = st.lists(st.integers(0, 60), min_size=1, max_size=9)


def partitions(lengths: list[int]) -> list[list[list[int]]]:
    """Every way to cut the sequences, sorted by length, into stretches."""
    order, count = sorted(range(len(lengths)), key=lambda i: lengths[i]), len(lengths)
    found = []
    for size in range(count):
        for cuts in combinations(range(1, count), size):
            edges = [0, *cuts, count]
            found.append([order[a:b] for a, b in pairwise(edges)])
    return found


def cost(lengths: list[int], groups: list[list[int]], unit: int) -> int:
    return padded_tokens([max(1, n) for n in lengths], groups) + unit * len(groups)


@given(Lengths.map(lambda lengths: [20 * n for n in lengths]), st.integers(1, 3000), st.integers(1, 9))
def test_no_other_groups_within_the_budget_cost_less(lengths: list[int], max_tokens: int, max_rows: int) -> None:
    groups = budgeted_groups(lengths, max_tokens, max_rows)
    assert sorted(row for group in groups for row in group) == list(range(len(lengths)))

    def fits(group: list[int]) -> bool:
        is_small = len(group) * max(1, *(lengths[i] for i in group)) <= max_tokens
        return len(group) == 1 or (is_small and len(group) <= max_rows)

    assert all(fits(group) for group in groups)
    allowed = [found for found in partitions(lengths) if all(fits(group) for group in found)]
    assert cost(lengths, groups, FORWARD_COST) == min(cost(lengths, found, FORWARD_COST) for found in allowed)
    longest = [max(lengths[i] for i in group) for group in groups]
    assert longest == sorted(longest, reverse=True)


@given(Lengths, st.integers(1, 9))
def test_no_other_neighbours_have_a_smaller_largest_group(lengths: list[int], num_groups: int) -> None:
    num_groups = min(num_groups, len(lengths))
    groups = neighbour_groups(lengths, num_groups)
    assert sorted(row for group in groups for row in group) == list(range(len(lengths)))
    assert len(groups) == num_groups
    assert all(groups)
    sizes = [max(1, n) for n in lengths]
    largest = max(padded_tokens(sizes, [group]) for group in groups)
    others = [found for found in partitions(lengths) if len(found) == num_groups]
    assert largest == min(max(padded_tokens(sizes, [group]) for group in found) for found in others)
    lowest, highest = [[pick(lengths[i] for i in group) for group in groups] for pick in (min, max)]
    assert all(low >= high for low, high in zip(lowest, highest[1:], strict=False)), "neighbours, the longest first"


def test_without_a_budget_short_sequences_are_one_forward() -> None:
    assert budgeted_groups([3, 9, 5, 1]) == [[0, 1, 2, 3]]
    assert budgeted_groups([]) == []


@pytest.mark.parametrize("spread", [0.5, 1.0, 1.2])
def test_little_of_log_normal_lengths_is_padding(spread: float) -> None:
    """64 rows with a median of 400 tokens; in scoring, and in the update with 8 micro-batches."""
    ratios = []
    for seed in range(20):
        drawn = np.random.default_rng(seed).normal(np.log(400), spread, 64)
        lengths = np.exp(drawn).clip(8, 8192).astype(int).tolist()
        read = padded_tokens(lengths, budgeted_groups(lengths, 2**15, 256))
        parts = [[lengths[i] for i in group] for group in neighbour_groups(lengths, 8)]
        updated = sum(padded_tokens(part, budgeted_groups(part)) for part in parts)
        ratios += [read / sum(lengths), updated / sum(lengths)]
    assert max(ratios) < 1.15
