"""The probability, under a teacher with other tokens, that its text begins with given bytes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lightning_opd.functional.logprobs import MAX_CHUNK_ELEMENTS
from lightning_opd.teachers.cross_tokenizer.token_bytes import CACHE_SIZE, CACHED_TEXTS, TokenBytes, union

Cover = tuple[int, int, int]
"""(node, first, stop): after `node` the teacher may generate any of its tokens with sorted index in [first, stop)."""


@dataclass(frozen=True)
class TextSegment:
    """The text between two control tokens, and the teacher's tokens of all its beginnings.

    Args:
        text: Its bytes as the teacher's tokenizer spells them, with what its template puts before them.
        student_spans: Begin and end of each student token in it, without gaps.
        is_same: For each student token, whether the teacher spells it with the same bytes; others get no score.
        is_canonical: For each student token, whether the student's tokenizer splits the text there, too.
        first_student: Index of its first student token in the reply.
        nodes: `nodes[n]` is the node at which the teacher has generated the first n bytes; None where its tokenizer
            cannot stop there.
        next_node: The node of the control token after the text, if both sides have it.
    """

    text: bytes
    student_spans: Sequence[tuple[int, int]]
    is_same: Sequence[bool]
    is_canonical: Sequence[bool]
    first_student: int
    nodes: Sequence[int | None]
    next_node: int | None

    @property
    def root(self) -> int:
        """The node before the text."""
        assert self.nodes[0] is not None
        return self.nodes[0]


@dataclass(frozen=True)
class Reply:
    """A reply, and what the teacher says at every node of the tree of its beginnings.

    Args:
        student_ids: The student's tokens.
        segments: Its text, in order.
        controls: (student index, node, node before) of the control tokens that both sides have.
        before: Log-prob (nats) of the teacher's tokens up to and including each node.
        logprobs: Returns, for a range of rows, the log-probs (nats) of all the teacher's tokens after the node of
            each, in the order of their ids. Asked for no more rows at once than a chunk holds.
        rows: The row of each node; by default its own number. Nodes that no sum needs have any.
    """

    student_ids: Sequence[int]
    segments: Sequence[TextSegment]
    controls: Sequence[tuple[int, int, int]]
    before: Sequence[float]
    logprobs: Callable[[range], Float[Tensor, "rows known"]]
    rows: Sequence[int] | None = None

    def row(self, node: int) -> int:
        """Return the row of a node."""
        return node if self.rows is None else self.rows[node]


class PrefixProbabilities:
    """Sums of the teacher's probabilities over the tokens with which its text may go on.

    P(text begins with x) is a sum over *covers*: the teacher generates its own tokens of a beginning of x that is
    shorter than x, then one token that reaches the end of x or goes beyond it.

    Args:
        student: The bytes of the student's tokens.
        teacher: Those of the teacher's.
        device: Where the teacher's probabilities lie.

    Reference:
        Vieira et al., From language models over tokens to language models over characters (2024).
    """

    def __init__(self, student: TokenBytes, teacher: TokenBytes, device: torch.device | None = None) -> None:
        """Remember both vocabularies."""
        self.student, self.teacher = student, teacher
        self._order = torch.tensor(teacher.sorted_ids, dtype=torch.long, device=device)
        self._leaving = lru_cache(CACHE_SIZE)(self._tokens_leaving_the_text)
        self.student_reaches, self.teacher_reaches = (
            lru_cache(CACHED_TEXTS)(side.reaches) for side in (student, teacher)
        )

    @property
    def device(self) -> torch.device:
        """Where the teacher's probabilities lie."""
        return self._order.device

    def gather(
        self, logprobs: Float[Tensor, "rows known"], rows: Int[Tensor, " asked"], indices: Int[Tensor, " asked"]
    ) -> Float[Tensor, " asked"]:
        """Return probabilities (float64) of single tokens of the teacher; 0 for those beyond its model.

        Args:
            logprobs: Of its tokens, in the order of their ids.
            rows: The row of each.
            indices: The sorted index of each.
        """
        ids = self._order[indices]
        last = logprobs.shape[1] - 1
        found = logprobs[rows, ids.clamp(max=last)].double().exp_()
        return found.masked_fill_(ids > last, 0.0)

    def chunks(self, rows: Sequence[int]) -> Iterator[range]:
        """Yield ranges of rows that cover the given ones, each with no more probabilities than a chunk may hold."""
        size = max(1, MAX_CHUNK_ELEMENTS // len(self.teacher))
        first, last = min(rows, default=0), max(rows, default=-1)
        while first <= last:
            yield range(first, min(first + size, last + 1))
            first += size

    def masses(
        self,
        covers: Sequence[Cover],
        logprobs: Callable[[range], Float[Tensor, "rows known"]],
        rows: Sequence[int] | None = None,
    ) -> dict[Cover, float]:
        """Return the probability of each cover's tokens after its node; the arguments are those of `Reply`."""
        if not covers:
            return {}
        nodes, first, stop = torch.tensor(covers, dtype=torch.long, device=self.device).unbind(dim=1)
        of_covers = nodes if rows is None else torch.tensor(rows, device=self.device)[nodes]
        order = of_covers.argsort(stable=True)
        at, first, count = of_covers[order], first[order], (stop - first)[order]
        masses = torch.zeros(len(covers), dtype=torch.float64, device=self.device)
        for chunk in self.chunks([int(at[0]), int(at[-1])]):
            begin, end = torch.searchsorted(at, torch.tensor([chunk.start, chunk.stop], device=self.device)).tolist()
            table = logprobs(chunk)
            for part in _parts(count[begin:end].tolist(), begin):
                counts = count[part]
                starts = first[part] - (counts.cumsum(0) - counts)
                which = torch.arange(len(counts), device=self.device).repeat_interleave(counts)
                indices = torch.arange(len(which), device=self.device) + starts[which]
                found = self.gather(table, (at[part] - chunk.start)[which], indices)
                masses[part] = found.new_zeros(len(counts)).index_add_(0, which, found)
        return dict(zip([covers[i] for i in order.tolist()], masses.tolist(), strict=True))

    def log_sums(
        self, terms: Sequence[Sequence[Cover]], masses: Mapping[Cover, float], before: Sequence[float]
    ) -> list[float]:
        """Return, for each list of covers, log Σ exp(before) · mass.

        Args:
            terms: Lists of covers.
            masses: Of covers; those of which it is not known are left out.
            before: Log-prob (nats) of the teacher's tokens up to and including each node.
        """
        sums = []
        for term in terms:
            known = [(before[cover[0]], masses[cover]) for cover in term if cover in masses]
            reference = max((logprob for logprob, _ in known), default=0.0)  # exp must not underflow
            total = sum(math.exp(logprob - reference) * mass for logprob, mass in known if logprob != -math.inf)
            sums.append(-math.inf if total == 0 else reference + math.log(total))
        return sums

    def covers(self, segment: TextSegment, end: int) -> list[Cover]:
        """Return the covers of the first `end` bytes: their sum is the probability that the text begins with them."""
        first, reaches = max(0, end - self.teacher.max_bytes), self.teacher_reaches(segment.text)
        covers = []
        for begin, node in enumerate(segment.nodes[first:end], first):
            if node is not None and reaches[begin] >= end:
                tokens = self.teacher.beginning_with(segment.text[begin:end])
                covers.append((node, tokens.start, tokens.stop))
        return covers

    def longer_covers(self, segment: TextSegment, index: int) -> list[Cover]:
        """Return covers of the texts that begin with a longer student token instead of the one at an index.

        The student generates "1" only where the text does not go on to "16", if it has a token "16". Texts that do go
        on like that are no longer its choice after "1", so their probability is taken off. Texts that agree with the
        reply up to the end of the longer token are not in the sum.
        """
        start, end = segment.student_spans[index]
        token = segment.text[start:end]
        if not self.student.extensions(token):
            return []
        last = self.student_reaches(segment.text)[start]  # no longer token agrees with the text beyond
        following = segment.text[end : last + 1]
        first, reaches = max(0, start - self.teacher.max_bytes + 1), self.teacher_reaches(segment.text)
        covers = []
        for begin, node in enumerate(segment.nodes[first : last + 1], first):
            # the expensive question only where a token of the teacher reaches the student's token
            if node is not None and (begin >= start or reaches[begin] >= start):
                head, offset = segment.text[begin:start], max(0, begin - start)
                covers += [(node, from_, to) for from_, to in self._leaving(head, offset, token, following)]
        return covers

    def _tokens_leaving_the_text(
        self, head: bytes, offset: int, token: bytes, following: bytes
    ) -> list[tuple[int, int]]:
        """Return ranges of the teacher's tokens that leave the text for a longer token of the student.

        Args:
            head: Bytes between the teacher's node and the begin of the student's token, if the node comes first.
            offset: Otherwise the number of bytes of the student's token before the teacher's node.
            token: The bytes of the student's token.
            following: The text after it.
        """
        text, found = token + following, []
        for longer in self.student.extensions(token):
            num_shared = next((i for i, (a, b) in enumerate(zip(longer, text, strict=False)) if a != b), len(text))
            if num_shared >= len(longer) or num_shared < offset:
                continue  # the text itself goes on like this; or it left this path before the node
            rest = head + longer[offset:]
            found.append(self.teacher.beginning_with(rest))  # one token that spells the rest, or more
            leaves_after = len(head) + num_shared - offset
            # or one that leaves the text inside the longer token: the teacher is then taken to finish that token
            found += [self.teacher.equal_to(rest[:length]) for length in range(leaves_after + 1, len(rest))]
        return union(found)


def _parts(counts: Sequence[int], start: int) -> Iterator[slice]:
    """Yield slices of lists of numbers, from `start` on, each with no more numbers than a chunk may hold, or one."""
    first = last = start
    total = 0
    for count in counts:
        if last > first and total + count > MAX_CHUNK_ELEMENTS // 8:
            yield slice(first, last)
            first, total = last, 0
        last, total = last + 1, total + count
    yield slice(first, last)
