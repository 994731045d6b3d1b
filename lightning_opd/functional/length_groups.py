"""Groups of sequences of like length, so that little of a forward is padding."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

FORWARD_COST = 256
"""Padded tokens that one forward less is worth: its launches, and its read of the weights."""

MAX_TOKENS_PER_FORWARD = 2**15
"""Most tokens of a forward without a graph, padding included, unless a setting says otherwise."""


def padded_tokens(lengths: Sequence[int], groups: Iterable[Sequence[int]]) -> int:
    """Return the tokens that the groups' forwards take, padding included.

    Args:
        lengths: Tokens of each sequence.
        groups: Indices of the sequences of each forward, padded to the longest of them.

    Example:
        >>> padded_tokens([5, 3, 9], [[0, 1], [2]])
        19
    """
    return sum(len(group) * max(lengths[i] for i in group) for group in groups if len(group))


def budgeted_groups(
    lengths: Sequence[int], max_tokens: int | None = None, max_rows: int | None = None
) -> list[list[int]]:
    """Return all sequences in the groups that cost least: their padded tokens, and `FORWARD_COST` for each group.

    Args:
        lengths: Tokens of each sequence.
        max_tokens: Most padded tokens of a group; a longer sequence is a group of its own. None for no limit.
        max_rows: Most sequences of a group; None for no limit.

    Returns:
        Indices, each group in ascending order, the group of the longest sequences first.

    Example:
        >>> budgeted_groups([5, 1000, 3, 900], max_tokens=2000)
        [[1, 3], [0, 2]]
    """
    order = sorted(range(len(lengths)), key=lambda i: (lengths[i], i))
    best, begins = torch.zeros(len(order) + 1, dtype=torch.long), [0]
    for end, index in enumerate(order, start=1):  # the last of a group is its longest
        length = max(1, lengths[index])
        most = min(max_rows or end, max(1, max_tokens // length) if max_tokens else end, end)
        first = end - most
        costs = best[first:end] + torch.arange(most, 0, -1) * length
        cheapest = int(costs.argmin())
        best[end] = costs[cheapest] + FORWARD_COST
        begins.append(first + cheapest)
    groups, end = [], len(order)
    while end > 0:
        groups.append(sorted(order[begins[end] : end]))
        end = begins[end]
    return groups


def neighbour_groups(lengths: Sequence[int], num_groups: int) -> list[list[int]]:
    """Return all sequences in a given number of groups of like length whose largest is as small as can be.

    Args:
        lengths: Tokens of each sequence.
        num_groups: Number of groups, none of them empty; at most one for each sequence.

    Returns:
        Indices, each group in ascending order, the group of the longest sequences first.

    Example:
        >>> neighbour_groups([9, 1, 8, 2, 2, 1], 2)
        [[0, 2], [1, 3, 4, 5]]
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    sizes = [max(1, lengths[i]) for i in order]
    low, high = sizes[0], len(sizes) * sizes[0]
    while low < high:  # the least padded tokens with which so many groups hold everything
        middle = (low + high) // 2
        low, high = (low, middle) if len(_greedy(sizes, middle)) <= num_groups else (middle + 1, high)
    groups = _greedy(sizes, low)
    while len(groups) < num_groups:
        begin, cut, end = max(_cuts(groups), key=lambda found: _worth(sizes, *found))
        groups = sorted([*(group for group in groups if group != (begin, end)), (begin, cut), (cut, end)])
    return [sorted(order[begin:end]) for begin, end in groups]


def _greedy(sizes: Sequence[int], most: int) -> list[tuple[int, int]]:
    """Return the fewest stretches of descending sizes none of which has more padded tokens than `most`."""
    groups, begin = [], 0
    while begin < len(sizes):
        end = min(len(sizes), begin + most // sizes[begin])
        groups.append((begin, end))
        begin = end
    return groups


def _cuts(groups: Sequence[tuple[int, int]]) -> list[tuple[int, int, int]]:
    """Return where each stretch begins, could be cut, and ends."""
    return [(begin, cut, end) for begin, end in groups for cut in range(begin + 1, end)]


def _worth(sizes: Sequence[int], begin: int, cut: int, end: int) -> tuple[int, int]:
    """Return the padded tokens that a cut saves, and how many sequences its smaller side has."""
    return (end - cut) * (sizes[begin] - sizes[cut]), min(cut - begin, end - cut)
