"""The teacher's probabilities of all the student's tokens at each token of a reply."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lightning_opd.teachers.cross_tokenizer.prefix_probabilities import Cover, PrefixProbabilities, Reply, TextSegment
from lightning_opd.teachers.cross_tokenizer.prefix_scores import PrefixScores
from lightning_opd.teachers.cross_tokenizer.token_bytes import CACHE_SIZE

MAX_OPEN_FRACTION = 0.01
"""A token's probability counts as known if at most this fraction of it hangs on how the teacher would go on."""

MAX_LOG_WEIGHT = 50.0
"""Bound (nats) on the weight of a node, so that rounding never makes it infinite."""


class NextTokenMap(NamedTuple):
    """The student's next token, for the teacher's tokens of a range in sorted order."""

    settled: Int[Tensor, " settled"]
    """Indices of the teacher's tokens that settle it, ..."""
    settled_ids: Int[Tensor, " settled"]
    """... and the student's token."""
    open: Int[Tensor, " open"]
    """Indices of those that do not, once for each of ..."""
    open_ids: Int[Tensor, " open"]
    """... the student's tokens that it may be."""

    def to(self, device: torch.device) -> NextTokenMap:
        """Return the same on a device."""
        if self.settled.device == device:
            return self
        return NextTokenMap(*(x.to(device) for x in self))


class Place(NamedTuple):
    """Where the teacher may stand when the student generates its next token."""

    student_index: int
    """Of the student's token."""
    node: int
    """The teacher's tokens before it."""
    head: bytes
    """Bytes from the node to the student's token."""
    longer: Sequence[Cover]
    """Covers of the texts in which the student's last token would have been a longer one."""


class PrefixDistributions:
    """Sum the teacher's probabilities by the token that the student would generate next.

    A token of the teacher tells the student's next token if the bytes that it adds leave only one choice. "1+" says
    that a student with the tokens `1` and `+` generates `1`. "1" alone leaves a student that also has a token "16"
    two choices: this mass is *open*.

    Args:
        sums: Of both vocabularies.
        controls: Student's control token → the teacher's.
    """

    def __init__(self, sums: PrefixProbabilities, controls: Mapping[int, int] | None = None) -> None:
        """Remember the control tokens."""
        self._sums, self.vocab_size = sums, len(sums.student)
        self._student_controls = {theirs: ours for ours, theirs in (controls or {}).items()}
        self._next_tokens = lru_cache(CACHE_SIZE)(self._next_token_map)

    def __call__(
        self,
        reply: Reply,
        token_scores: PrefixScores,
        indices: range | None = None,
        places: Sequence[Place] | None = None,
    ) -> Float[Tensor, "student vocab"]:
        """Return the teacher's probability (float64) of every token of the student at each of its tokens.

        0 where too much of it is open (see `MAX_OPEN_FRACTION`), so that a row may add up to less than 1. The
        probability of the token that the student generated is always known.

        Args:
            reply: The reply.
            token_scores: Its scores.
            indices: The student's tokens to answer for; by default all.
            places: The places of the reply, if they are known; see `places`.
        """
        indices = range(len(reply.student_ids)) if indices is None else indices
        shape = len(indices), len(self._sums.student)
        settled, open_ = _Masses(self._sums, shape), _Masses(self._sums, shape)
        for index, node, head, longer in self.places(reply.segments, reply.controls) if places is None else places:
            if index not in indices:
                continue
            following = self._next_tokens(head).to(self._sums.device)
            weight = math.exp(min(reply.before[node] - token_scores.starts[index], MAX_LOG_WEIGHT))
            # texts that make the student's last token a longer one: it would have generated that one
            excluded = [(first, stop) for at, first, stop in longer if at == node]
            row = index - indices.start
            settled.add(row, reply.row(node), weight, following.settled, following.settled_ids, excluded)
            open_.add(row, reply.row(node), weight, following.open, following.open_ids, excluded)
        known, open_mass = torch.zeros(2, *shape, dtype=torch.float64, device=self._sums.device)
        for nodes in self._sums.chunks([*settled.nodes(), *open_.nodes()]):
            logprobs = reply.logprobs(nodes)
            settled.add_to(known, nodes, logprobs)
            open_.add_to(open_mass, nodes, logprobs)
        known = torch.where(open_mass <= MAX_OPEN_FRACTION * known, known, 0.0)
        own = (token_scores.logprobs.exp() * token_scores.is_scored)[indices.start : indices.stop]
        ids = torch.tensor(reply.student_ids[indices.start : indices.stop], dtype=torch.long, device=known.device)
        known.scatter_(1, ids[:, None], own[:, None])
        return known / known.sum(dim=1, keepdim=True).clamp(min=1.0)

    def places(self, segments: Sequence[TextSegment], controls: Sequence[tuple[int, int, int]]) -> list[Place]:
        """Return where the teacher may stand when the student generates its next token, in the order of the text.

        Args:
            segments: Of a reply.
            controls: Its control tokens that both sides have; see `Reply`.
        """
        places: list[Place] = []
        after_text: dict[int, list[Place]] = {}
        for segment in segments:
            longer: Sequence[Cover] = ()
            reaches = self._sums.teacher_reaches(segment.text)
            starts = [*(start for start, _ in segment.student_spans), len(segment.text)]
            for i, start in enumerate(starts):
                index, first = segment.first_student + i, max(0, start - self._sums.teacher.max_bytes + 1)
                covers = [
                    Place(index, node, segment.text[begin:start], longer)
                    for begin, node in enumerate(segment.nodes[first : start + 1], first)
                    if node is not None
                    and (begin == start or (reaches[begin] >= start and self._goes_on(segment.text[begin:start])))
                ]
                if i == len(segment.student_spans):
                    after_text[index] = covers  # a token here exists only if a control token follows
                else:
                    places += covers
                    longer = self._sums.longer_covers(segment, i) if segment.is_canonical[i] else ()
        for index, _, node_before in controls:
            places += after_text.get(index, [Place(index, node_before, b"", ())])
        return places

    def _goes_on(self, head: bytes) -> bool:
        """Whether a token of the teacher begins like this and goes on."""
        return bool(self._sums.teacher.extensions(head))

    def _next_token_map(self, head: bytes) -> NextTokenMap:
        """Return what the student generates next, for the teacher's tokens that begin with `head`."""
        teacher = self._sums.teacher
        settled: list[tuple[int, int]] = []
        open_: list[tuple[int, int]] = []
        for index in teacher.beginning_with(head) if head else range(len(teacher)):
            rest = teacher.sorted_bytes[index][len(head) :]
            if rest:
                ids = self._sums.student.first_tokens(rest)
                (settled if len(ids) == 1 else open_).extend((index, token_id) for token_id in ids)
            elif not head and (token_id := self._student_controls.get(teacher.sorted_ids[index])) is not None:
                settled.append((index, token_id))
        columns = [torch.tensor(pairs, dtype=torch.long).view(-1, 2).unbind(dim=1) for pairs in (settled, open_)]
        return NextTokenMap(*columns[0], *columns[1])


class _Masses:
    """Adds probabilities of the teacher's tokens to the student's tokens, one chunk of nodes at a time."""

    def __init__(self, sums: PrefixProbabilities, shape: tuple[int, int]) -> None:
        self._sums, self._shape = sums, shape
        self._parts: list[tuple[int, float, Tensor, Tensor]] = []

    def add(
        self, row: int, node: int, weight: float, indices: Tensor, ids: Tensor, excluded: Sequence[tuple[int, int]]
    ) -> None:
        """Plan to add weight · probability of the teacher's tokens at `indices` after a node to `ids` of a row.

        Args:
            row: Row of the result.
            node: Node of the teacher.
            weight: Factor.
            indices: The teacher's tokens in sorted order.
            ids: The student's token of each.
            excluded: Ranges (first, stop) of indices to leave out.
        """
        if excluded:
            is_kept = torch.ones_like(indices, dtype=torch.bool)
            for first, stop in excluded:
                is_kept &= (indices < first) | (indices >= stop)
            indices, ids = indices[is_kept], ids[is_kept]
        if len(indices):
            self._parts.append((node, weight, indices, ids + row * self._shape[1]))

    def nodes(self) -> list[int]:
        """Return the nodes whose probabilities are needed."""
        return [node for node, *_ in self._parts]

    def add_to(self, out: Tensor, nodes: range, logprobs: Tensor) -> None:
        """Add what comes from a chunk of nodes."""
        parts = [part for part in self._parts if part[0] in nodes]
        if not parts:
            return
        counts = torch.tensor([len(indices) for _, _, indices, _ in parts], device=out.device)
        weights = torch.tensor([weight for _, weight, _, _ in parts], dtype=out.dtype, device=out.device)
        rows = torch.tensor([node - nodes.start for node, *_ in parts], device=out.device).repeat_interleave(counts)
        masses = self._sums.gather(logprobs, rows, torch.cat([indices for _, _, indices, _ in parts]))
        masses *= weights.repeat_interleave(counts)
        # one scatter over all parts: row and token are one flat index
        out.view(-1).index_add_(0, torch.cat([targets for *_, targets in parts]), masses)
