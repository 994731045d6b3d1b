"""Trees of tokens, cut into chunks that a model reads one after the other, with the keys and values of the trunks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from lightning_opd.types import TokenTree

READ_AT_ONCE = 1024
"""Most tokens of a chunk, if no branch of one token after the other is longer."""


class Chunk(NamedTuple):
    """Tokens to be read at once; they are numbered over all trees.

    Args:
        columns: Their numbers, ascending: first the tokens of branches that have been read before and go on here.
        num_known: So many of them have been read before.
        cached: The numbers of the tokens whose keys and values are kept from earlier chunks.
        kept: Which of `cached`, then of `columns`, are to be kept for the next chunk.
    """

    columns: list[int]
    num_known: int
    cached: list[int]
    kept: list[int]


class TreeReading:
    """Which tokens of some trees are read together, and which of the others each of them reads.

    Every tree has a *trunk*, by default its longest branch. A token reads the trunk up to the place where its own
    branch leaves it, and its branch from there on. Only the trunk is kept from chunk to chunk; what goes on from
    another branch of an earlier chunk reads that again.

    Args:
        trees: Tokens and, for each, the number of the token before it in its tree.
        at_once: Most tokens to read at once.
        num_read: So many of each tree's first tokens are its trunk, and an earlier reading has kept them.
        goes_on: Whether all trunks are kept for another reading.
    """

    def __init__(
        self,
        trees: Sequence[TokenTree],
        at_once: int = READ_AT_ONCE,
        num_read: Sequence[int] | None = None,
        *,
        goes_on: bool = False,
    ) -> None:
        """Find the trunks and cut the chunks."""
        self.token_ids: list[int] = []
        self.trees: list[int] = []
        self.depths: list[int] = []
        self._parents: list[int] = []
        self._is_trunk: list[bool] = []
        self._leaves: list[int] = []
        """For each token the depth at which its branch leaves the trunk."""
        self.ends: list[int] = []
        """Of the trees, counted in tokens that this reading reads."""
        self._unread: list[int] = []
        for i, tree in enumerate(trees):
            start = len(self.token_ids)
            self._add(tree, None if num_read is None else num_read[i])
            self._unread += range(start + (0 if num_read is None else num_read[i]), len(self.token_ids))
            self.ends.append(len(self._unread))
        self.chunks = self._cut(at_once, goes_on=goes_on)

    def _add(self, tree: TokenTree, num_read: int | None) -> None:
        start = len(self.token_ids)
        depths: list[int] = []
        for parent in tree.parents:
            depths.append(depths[parent] + 1 if parent >= 0 else 0)
        is_trunk = [False] * len(depths)
        last = depths.index(max(depths)) if depths else -1
        node = last if num_read is None else num_read - 1
        while node >= 0:
            is_trunk[node] = True
            node = tree.parents[node]
        for node, parent in enumerate(tree.parents):
            self._leaves.append(depths[node] if is_trunk[node] or parent < 0 else self._leaves[start + parent])
        self.token_ids += tree.token_ids
        self.trees += [len(self.ends)] * len(depths)
        self.depths += depths
        self._parents += [start + parent if parent >= 0 else -1 for parent in tree.parents]
        self._is_trunk += is_trunk

    def _cut(self, at_once: int, *, goes_on: bool) -> list[Chunk]:
        runs: list[tuple[int, set[int]]] = []  # first new token, and what is read again
        unread = self._unread
        start, again = 0, set[int]()
        for place, column in enumerate(unread):
            missing = self._missing(column, unread[start], again)
            if place > start and place + 1 - start + len(again) + len(missing) > at_once:
                runs.append((start, again))
                start, again = place, set()
                missing = self._missing(column, column, again)
            again |= missing
        runs += [(start, again)] if unread else []
        chunks, cached = [], sorted(set(range(len(self.token_ids))).difference(unread))
        for (start, again), end in zip(runs, [*(first for first, _ in runs), len(unread)][1:], strict=True):
            columns = [*sorted(again), *unread[start:end]]
            first = 0 if goes_on else self.trees[unread[end]] if end < len(unread) else len(self.ends)
            both = [*cached, *columns]
            kept = [i for i, column in enumerate(both) if self._is_trunk[column] and self.trees[column] >= first]
            chunks.append(Chunk(columns, len(again), cached, kept))
            cached = [both[i] for i in kept]
        return chunks

    def _missing(self, column: int, start: int, again: set[int]) -> set[int]:
        """Return the tokens before this one in its branch that earlier chunks have read and not kept."""
        missing, parent = set(), self._parents[column]
        while 0 <= parent < start and not self._is_trunk[parent] and parent not in again:
            missing.add(parent)
            parent = self._parents[parent]
        return missing

    def attention(self, chunk: Chunk) -> tuple[Bool[Tensor, "1 time keys"], Int[Tensor, "1 keys"]]:
        """Return which of the kept tokens and of its own a chunk's tokens read, and the positions of all these."""
        keys = [*chunk.cached, *chunk.columns]
        of_keys, of_queries = ([self.trees[i] for i in x] for x in (keys, chunk.columns))
        depths = torch.tensor([self.depths[i] for i in keys])
        reach = torch.tensor([self._leaves[i] for i in chunk.columns])
        reads = torch.tensor([self._is_trunk[i] for i in keys]) & (depths <= reach[:, None])
        reads &= torch.tensor(of_keys) == torch.tensor(of_queries)[:, None]
        places = {column: place for place, column in enumerate(chunk.columns)}
        branches = torch.zeros(len(places), len(places), dtype=torch.bool)
        for column, place in places.items():
            if not self._is_trunk[column]:
                parent = self._parents[column]
                if parent >= 0 and not self._is_trunk[parent]:
                    branches[place] = branches[places[parent]]
                branches[place, place] = True
        reads[:, len(chunk.cached) :] |= branches
        return reads[None], depths[None]
