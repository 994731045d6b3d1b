"""Keys and values of tokens already read or generated, for the next turn of the same episodes."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

if TYPE_CHECKING:
    from transformers import DynamicCache, PretrainedConfig

Place = tuple[Float[Tensor, "states rows heads time dim"], int, int]
"""A block of keys and values, and the row and the first column of a sequence in it."""


class PrefixCache:
    """Remembers sequences with their keys and values, and finds the longest known prefix of a new sequence.

    It works for models that keep all keys and values of every layer. Where a layer has a sliding window or a state of
    its own, nothing is remembered and the next turn reads its prompt from the start.
    """

    def __init__(self) -> None:
        """Start empty."""
        self._sequences: list[tuple[int, ...]] = []
        self._places: dict[tuple[int, ...], Place] = {}

    def keep(
        self, sequences: Sequence[Sequence[int]], starts: Sequence[int], rows: Int[Tensor, " rows"], cache: DynamicCache
    ) -> None:
        """Remember sequences.

        Args:
            sequences: Tokens whose keys and values the cache holds.
            starts: Column of each sequence's first token.
            rows: Row of each sequence in the cache.
            cache: Keys and values of one batch; they are copied.
        """
        states = _states(cache)
        if not sequences or not states:
            return
        block = torch.stack([state[rows] for state in states])
        for row, (sequence, start) in enumerate(zip(sequences, starts, strict=True)):
            self._places[tuple(sequence)] = (block, row, start)
        self._sequences = []

    def beginnings(self, sequences: Sequence[Sequence[int]], config: PretrainedConfig) -> tuple[DynamicCache, int]:
        """Return a cache of the known prefixes, and how many columns of the sequences are still to be read.

        Columns are those of the sequences padded on the left to the longest. Every row reads as many last
        columns as the row with the shortest known prefix needs, so that no row has a gap.

        Args:
            sequences: Prompts of one batch.
            config: The model's.
        """
        from transformers import DynamicCache

        self._sequences = self._sequences or sorted(self._places)
        cache, longest = DynamicCache(config=config), max(map(len, sequences))
        known = [self._best(tuple(sequence[:-1])) for sequence in sequences]  # the last one gives the logits
        num_new = max(len(sequence) - length for sequence, (length, _) in zip(sequences, known, strict=True))
        places = [place for _, place in known if place is not None]
        if num_new == longest or not places:
            return cache, longest
        block = places[0][0]
        states = block.new_zeros(len(block), len(sequences), block.shape[2], longest - num_new, block.shape[4])
        for row, (sequence, (_, place)) in enumerate(zip(sequences, known, strict=True)):
            length = len(sequence) - num_new
            if place is not None and length > 0:
                block, source, start = place
                states[:, row, :, -length:] = block[:, source, :, start : start + length]
        for layer in range(len(states) // 2):
            cache.update(states[2 * layer], states[2 * layer + 1], layer)
        return cache, num_new

    def _best(self, sequence: tuple[int, ...]) -> tuple[int, Place | None]:
        """Return the length of the longest common prefix with a remembered sequence, and its place."""
        index = bisect_left(self._sequences, sequence)
        near = self._sequences[max(0, index - 1) : index + 1]  # sorted: a neighbour has the longest common prefix
        length, nearest = max(((_num_shared(sequence, other), other) for other in near), default=(0, ()))
        return length, self._places.get(nearest)


def _num_shared(one: tuple[int, ...], other: tuple[int, ...]) -> int:
    longest = min(len(one), len(other))
    return bisect_left(range(1, longest + 1), True, key=lambda n: one[:n] != other[:n])


def _states(cache: DynamicCache) -> list[Tensor]:
    """Return every layer's keys and values; nothing if a layer lacks some or has another shape."""
    from lightning_opd.rollouts.growing_cache import keeps_everything

    states: list[Tensor] = []
    for layer in cache.layers:
        if not keeps_everything(layer) or layer.keys is None or layer.values is None:
            return []
        states += [layer.keys, layer.values]
    return states if len({state.shape for state in states}) == 1 else []
