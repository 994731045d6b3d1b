"""What a teacher says at the nodes of a tree, computed for a range of them at a time."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_opd.functional.logprobs import log_softmax
from lightning_opd.teachers.cross_tokenizer.prefix_probabilities import PrefixProbabilities
from lightning_opd.teachers.cross_tokenizer.prefix_tree import PrefixTree
from lightning_opd.types import LinearHead

IMPOSSIBLE_LOGPROB = -1e3
"""Stands (nats) for a token to which the teacher gives no probability at all: a bad score, yet a known one."""


class NodeTable:
    """The teacher's log-probs after those nodes of a tree that it has read: a row each.

    Args:
        head: The teacher's output layer.
        temperature: Divides its logits.
        tree: The tree.

    Attributes:
        rows: The row of each node; −1 for one that has not been read.
    """

    def __init__(self, head: LinearHead, temperature: float, tree: PrefixTree) -> None:
        """Begin with no rows."""
        self._head, self._temperature, self._tree = head, temperature, tree
        self.rows = [-1] * len(tree.token_ids)
        self._parts: list[Tensor] = []
        self._num = 0
        self._ids = torch.tensor(tree.token_ids)
        self._own = torch.full(self._ids.shape, -torch.inf, dtype=torch.float64)
        self._is_known: list[bool] = []
        self._last: tuple[range, Tensor] | None = None

    def __len__(self) -> int:
        """Return the number of rows."""
        return self._num

    def add(self, nodes: Sequence[int], states: Float[Tensor, "nodes hidden"]) -> None:
        """Add the states after some nodes."""
        for row, node in enumerate(nodes, self._num):
            self.rows[node] = row
        self._parts.append(states)
        self._num += len(nodes)
        self._is_known += [False] * len(nodes)
        self._last = None
        rows = torch.tensor([self.rows[parent] for parent in self._tree.parents[1:]], dtype=torch.long)
        self._children = rows.argsort(stable=True) + 1
        self._before = rows[self._children - 1]
        """The row before each child."""

    def logprobs(self, rows: range) -> Float[Tensor, "rows vocab"]:
        """Return the log-probs of the next token after the nodes of some rows; the last answer is kept."""
        if self._last is None or self._last[0] != rows:
            self._last = None  # its memory, before the next
            self._last = rows, self._logprobs(rows)
        return self._last[1]

    def _logprobs(self, rows: range) -> Tensor:
        """Return the log-probs, and remember those of the tokens in the tree."""
        logprobs = log_softmax(self._head.logits(self._states(rows)), self._temperature)
        begin, end = torch.searchsorted(self._before, torch.tensor([rows.start, rows.stop])).tolist()
        children, before = self._children[begin:end], self._before[begin:end] - rows.start
        is_inside = self._ids[children] < self._head.vocab_size
        children, before = children[is_inside], before[is_inside]
        device = logprobs.device
        own = logprobs[before.to(device), self._ids[children].to(device)].double()
        self._own[children] = own.clamp(min=IMPOSSIBLE_LOGPROB).cpu()
        self._is_known[rows.start : rows.stop] = [True] * len(rows)
        return logprobs

    def _states(self, rows: range) -> Tensor:
        found, first = [], 0
        for part in self._parts:
            found.append(part[max(0, rows.start - first) : max(0, rows.stop - first)])
            first += len(part)
        found = [part for part in found if len(part)]
        return found[0] if len(found) == 1 else torch.cat(found)

    def before(self, sums: PrefixProbabilities) -> list[float]:
        """Return the log-prob (nats) of the tokens up to and including each node.

        −inf beyond a token that the model does not know, and where the node before has not been read.
        """
        unknown = [row for row in self._before.unique().tolist() if row >= 0 and not self._is_known[row]]
        for rows in sums.chunks(unknown):
            self._logprobs(rows)
        before = [0.0]
        for parent, logprob in zip(self._tree.parents[1:], self._own[1:].tolist(), strict=True):
            before.append(before[parent] + logprob)
        return before
