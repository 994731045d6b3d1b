"""The probability that a text begins like this, under a model of other tokens; and scores from it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lightning_opd.functional.logprobs import MAX_CHUNK_ELEMENTS
from lightning_opd.teachers.cross_tokenizer.token_bytes import CACHE_SIZE, TokenBytes, union

NONCANONICAL_LOGPROB = -20.0
"""Log-prob (nats) of cutting a text as the student's own tokenizer would not: the teacher knows texts, not cuts."""

UNSETTLED = 0.01
"""Fraction of a token's probability that may be open where it is called known."""

Cover = tuple[int, int, int]
"""A node of the teacher's, and the first and the last (excluded) token in sorted order that may follow it."""


@dataclass(frozen=True)
class TextSegment:
    """Text between control tokens, and the teacher's tokens of all its beginnings.

    Args:
        text: Its bytes, with what the teacher's template puts before it.
        student_spans: Begin and end of each student token in it, without gaps.
        is_canonical: Whether the student's tokenizer would cut the text into this token, for each.
        first_student: Index of its first student token in the reply.
        nodes: The node at which the teacher has written so many bytes, from none to all; None where its tokenizer
            cannot stop there.
        next_node: The node of the control token after the text, if both sides have it.
    """

    text: bytes
    student_spans: Sequence[tuple[int, int]]
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
        stretches: Its text, in order.
        controls: (student index, node, node before) of the control tokens that both sides have.
        before: Log-prob (nats) of the teacher's tokens up to each node.
        probabilities: Gives, for a range of nodes, those of all the teacher's tokens after each, in sorted order;
            see `sort`. Asked for no more nodes at once than a chunk holds.
    """

    student_ids: Sequence[int]
    segments: Sequence[TextSegment]
    controls: Sequence[tuple[int, int, int]]
    before: Sequence[float]
    probabilities: Callable[[range], Float[Tensor, "nodes vocab"]]


@dataclass(frozen=True)
class PrefixScores:
    """What a reply's tokens are compared with.

    Args:
        logprobs: Log-prob (nats) of the bytes of each of the student's tokens after those before it.
        is_scored: Which tokens have one.
        starts: Log-prob (nats) of the reply before each of them.
    """

    logprobs: Float[Tensor, " student"]
    is_scored: Bool[Tensor, " student"]
    starts: Sequence[float]


class NextTokenMap(NamedTuple):
    """What the student generates next, for a run of the teacher's tokens in sorted order."""

    settled: Tensor
    """Places of those that settle it, ..."""
    settled_ids: Tensor
    """... and the student's tokens."""
    open: Tensor
    """Those that do not, once for each of ..."""
    open_ids: Tensor
    """... the student's tokens that it may be."""

    def to(self, device: torch.device) -> NextTokenMap:
        """Return the same on a device."""
        if self.settled.device == device:
            return self
        tensors = (self.settled, self.settled_ids, self.open, self.open_ids)
        return NextTokenMap(*(x.to(device) for x in tensors))


class _Sums:
    """Adds masses of the teacher's tokens to the student's tokens at some places, one chunk of nodes at a time."""

    def __init__(self, shape: tuple[int, int]) -> None:
        self._shape = shape
        self._parts: list[tuple[int, float, Tensor, Tensor]] = []

    def add(
        self, index: int, node: int, weight: float, places: Tensor, ids: Tensor, gone: Sequence[tuple[int, int]]
    ) -> None:
        """Add the masses at some places after a node, but for ranges of them, to tokens at one index."""
        if gone:
            is_kept = torch.ones_like(places, dtype=torch.bool)
            for first, stop in gone:
                is_kept &= (places < first) | (places >= stop)
            places, ids = places[is_kept], ids[is_kept]
        if len(places):
            self._parts.append((node, weight, places, ids + index * self._shape[1]))

    def nodes(self) -> list[int]:
        """Return the nodes that are needed."""
        return [node for node, *_ in self._parts]

    def add_to(self, out: Tensor, nodes: range, probabilities: Tensor) -> None:
        """Add what comes from a chunk of nodes."""
        parts = [part for part in self._parts if part[0] in nodes]
        if not parts:
            return
        counts = torch.tensor([len(places) for _, _, places, _ in parts], device=out.device)
        weights = torch.tensor([weight for _, weight, _, _ in parts], dtype=out.dtype, device=out.device)
        sources = torch.cat([places + (node - nodes.start) * probabilities.shape[1] for node, _, places, _ in parts])
        masses = probabilities.flatten()[sources] * weights.repeat_interleave(counts)
        out.view(-1).index_add_(0, torch.cat([targets for *_, targets in parts]), masses)


class PrefixScorer:
    """Score the student's tokens by the teacher's probability that a text begins like this.

    Token i gets log P(tokens ≤ i) − log P(tokens < i). P is the probability that the teacher's text begins with
    these bytes: the sum over its tokens that cover their end, each after the teacher's own tokens before it. Where
    the student has longer tokens that begin like its last one, the texts that go on like those are taken off: it
    would have cut them otherwise. So no score says what follows, and the scores of a reply add up to the
    teacher's log-prob of its text.

    Exact for a teacher that writes only tokenisations of its own whose beginnings are its own, too (byte-pair
    encodings; nearly so where text is split by a pattern first), but for one thing: where it begins a longer token
    of the student in several of its own, off the text, it is taken to finish it.

    Args:
        student: The student's pieces.
        teacher: The teacher's.
        controls: Student's control token → the teacher's.
        device: Where the teacher's probabilities lie.

    Reference:
        Prefix probabilities by covers: Vieira et al., From language models over tokens to language models over
        characters (2024).
    """

    def __init__(
        self,
        student: TokenBytes,
        teacher: TokenBytes,
        controls: Mapping[int, int] | None = None,
        device: torch.device | None = None,
    ) -> None:
        """Remember both vocabularies."""
        self.student, self.teacher = student, teacher
        self._student_controls = {theirs: ours for ours, theirs in (controls or {}).items()}
        self._order = torch.tensor(teacher.order, dtype=torch.long, device=device)
        self._going_on = lru_cache(CACHE_SIZE)(self._tokens_going_on)
        self._following = lru_cache(CACHE_SIZE)(self._following_of)

    def sort(self, logprobs: Float[Tensor, "nodes known"]) -> Float[Tensor, "nodes vocab"]:
        """Return probabilities (float64) of the teacher's tokens in sorted order; 0 for those beyond its model."""
        num_missing = max(0, len(self.teacher.order) - logprobs.shape[1])
        return torch.nn.functional.pad(logprobs.double().exp(), (0, num_missing))[:, self._order]

    def score(self, reply: Reply) -> PrefixScores:
        """Return the log-probs of the student's tokens of a reply, in float64."""
        terms: list[Sequence[Cover]] = []
        for segment in reply.segments:
            terms.append(self._covers(segment, segment.student_spans[0][0]))
            for place, (_, end) in enumerate(segment.student_spans):
                terms += [self._covers(segment, end), self._longer(segment, place)]
        sums = iter(self._log_sums(terms, reply))
        num = len(reply.student_ids)
        logprobs, is_scored, starts = [0.0] * num, [False] * num, [0.0] * num
        ends: dict[int, float] = {}  # log P after the last student token of a stretch
        for segment in reply.segments:
            least, begin = _least(segment, reply.before), segment.student_spans[0][0]
            start = max(next(sums), least[begin])
            last = start if begin else reply.before[segment.root]
            later = -math.inf if segment.next_node is None else reply.before[segment.next_node]
            whole = [(max(next(sums), least[end]), next(sums)) for _, end in segment.student_spans]
            reached = _reached(whole, segment.is_canonical, later)
            for i, ((begins, _), own, is_canonical) in enumerate(
                zip(whole, reached, segment.is_canonical, strict=True)
            ):
                index = segment.first_student + i
                starts[index], is_scored[index] = last, True
                logprobs[index] = (own if is_canonical else begins + NONCANONICAL_LOGPROB) - last
                last = own if is_canonical else begins
            ends[segment.first_student + len(whole) - 1] = last
        for index, node, node_before in reply.controls:
            starts[index], is_scored[index] = ends.get(index - 1, reply.before[node_before]), True
            logprobs[index] = reply.before[node] - starts[index]
        for index in range(num):  # what follows a token that the teacher's model does not know
            if not math.isfinite(logprobs[index]):
                logprobs[index], is_scored[index] = 0.0, False
        device = self._order.device
        return PrefixScores(
            torch.tensor(logprobs, dtype=torch.float64, device=device),
            torch.tensor(is_scored, dtype=torch.bool, device=device),
            starts,
        )

    def distributions(
        self, reply: Reply, token_scores: PrefixScores, among: range | None = None
    ) -> Float[Tensor, "student vocab"]:
        """Return the teacher's probability (float64) of every token of the student at each of its tokens.

        0 where the teacher's next token does not settle it, so that a row may add up to less than 1: the token that
        the student generated is always known, others only if at most `UNSETTLED` of their probability hangs on how the
        teacher would go on.

        Args:
            reply: The reply.
            token_scores: Its scores.
            among: The student's tokens to answer for; by default all.
        """
        among, device = range(len(reply.student_ids)) if among is None else among, self._order.device
        shape = len(among), len(self.student.order)
        settled, open_ = _Sums(shape), _Sums(shape)
        for index, node, head, longer in self._next_covers(reply):
            if index not in among:
                continue
            following = self._following(head).to(device)
            weight = math.exp(min(reply.before[node] - token_scores.starts[index], 50.0))
            gone = [(first, stop) for at, first, stop in longer if at == node]  # would have been cut otherwise
            settled.add(index - among.start, node, weight, following.settled, following.settled_ids, gone)
            open_.add(index - among.start, node, weight, following.open, following.open_ids, gone)
        known, open_mass = torch.zeros(2, *shape, dtype=torch.float64, device=device)
        for nodes in self.chunks([*settled.nodes(), *open_.nodes()]):
            probabilities = reply.probabilities(nodes)
            settled.add_to(known, nodes, probabilities)
            open_.add_to(open_mass, nodes, probabilities)
        known = torch.where(open_mass <= UNSETTLED * known, known, 0.0)
        own = (token_scores.logprobs.exp() * token_scores.is_scored)[among.start : among.stop]
        ids = torch.tensor(reply.student_ids[among.start : among.stop], dtype=torch.long, device=device)
        known.scatter_(1, ids[:, None], own[:, None])
        return known / known.sum(dim=1, keepdim=True).clamp(min=1.0)

    def chunks(self, nodes: Sequence[int]) -> Iterator[range]:
        """Yield ranges of nodes that cover the given ones, each with no more probabilities than a chunk may hold."""
        size = max(1, MAX_CHUNK_ELEMENTS // len(self.teacher.order))
        first = min(nodes, default=0)
        while nodes and first <= max(nodes):
            yield range(first, min(first + size, max(nodes) + 1))
            first += size

    def _next_covers(self, reply: Reply) -> Iterator[tuple[int, int, bytes, Sequence[Cover]]]:
        """Yield (student index, node, bytes between the two, covers of what would have come before)."""
        ends: dict[int, list[tuple[int, int, bytes, Sequence[Cover]]]] = {}
        for segment in reply.segments:
            longer: Sequence[Cover] = ()
            starts = [*(start for start, _ in segment.student_spans), len(segment.text)]
            for place, start in enumerate(starts):
                index, first = segment.first_student + place, max(0, start - self.teacher.longest + 1)
                covers = [
                    (index, node, segment.text[first + i : start], longer)
                    for i, node in enumerate(segment.nodes[first : start + 1])
                    if node is not None and self._begins(segment.text[first + i : start])
                ]
                if place == len(segment.student_spans):
                    ends[index] = covers
                else:
                    yield from covers
                    longer = self._longer(segment, place) if segment.is_canonical[place] else ()
        for index, _, node_before in reply.controls:
            yield from ends.get(index, [(index, node_before, b"", ())])

    def _begins(self, head: bytes) -> bool:
        """Whether a token of the teacher begins like this and goes on."""
        return not head or bool(self.teacher.longer_than(head))

    def _following_of(self, head: bytes) -> NextTokenMap:
        """Return what the student generates next, for the teacher's tokens that begin with `head`."""
        places = self.teacher.beginning_with(head) if head else range(len(self.teacher.pieces))
        settled: list[tuple[int, int]] = []
        open_: list[tuple[int, int]] = []
        for place in places:
            rest = self.teacher.pieces[place][len(head) :]
            if rest:
                ids = self.student.first_tokens(rest)
                (settled if len(ids) == 1 else open_).extend((place, token_id) for token_id in ids)
            elif not head and (token_id := self._student_controls.get(self.teacher.order[place])) is not None:
                settled.append((place, token_id))
        columns = [torch.tensor(pairs, dtype=torch.long).view(-1, 2).unbind(dim=1) for pairs in (settled, open_)]
        return NextTokenMap(*columns[0], *columns[1])

    def _log_sums(self, terms: Sequence[Sequence[Cover]], reply: Reply) -> list[float]:
        """Return log Σ exp(before) · mass of every term's covers."""
        covers = torch.tensor([cover for term in terms for cover in term], dtype=torch.long, device=self._order.device)
        masses = torch.zeros(len(covers), dtype=torch.float64, device=covers.device)
        for chunk in self.chunks(covers[:, 0].tolist() if len(covers) else []):
            cumulative = torch.nn.functional.pad(reply.probabilities(chunk).cumsum(dim=-1), (1, 0))
            inside = (covers[:, 0] >= chunk.start) & (covers[:, 0] < chunk.stop)
            nodes, first, last = covers[inside].unbind(dim=1)
            masses[inside] = cumulative[nodes - chunk.start, last] - cumulative[nodes - chunk.start, first]
        pending, sums = iter(masses.tolist()), []
        for term in terms:
            reference = max((reply.before[node] for node, _, _ in term), default=0.0)
            total = sum(math.exp(reply.before[node] - reference) * next(pending) for node, _, _ in term)
            sums.append(reference + math.log(total) if total > 0 else -math.inf)
        return sums

    def _covers(self, segment: TextSegment, end: int) -> list[Cover]:
        """Return the teacher's tokens that cover a place in the text."""
        first = max(0, end - self.teacher.longest)
        covers = []
        for begin, node in enumerate(segment.nodes[first:end], first):
            if node is not None and (tokens := self.teacher.beginning_with(segment.text[begin:end])):
                covers.append((node, tokens.start, tokens.stop))
        return covers

    def _longer(self, segment: TextSegment, place: int) -> list[Cover]:
        """Return the teacher's tokens that begin like a longer token of the student, and not like the text."""
        start, end = segment.student_spans[place]
        piece = segment.text[start:end]
        if not self.student.longer_than(piece):
            return []
        following = segment.text[end : start + self.student.longest]
        first = max(0, start - self.teacher.longest + 1)
        covers = []
        for begin, node in enumerate(segment.nodes[first : start + self.student.longest], first):
            if node is not None:
                head, offset = segment.text[begin:start], max(0, begin - start)
                going_on = self._going_on(head, offset, piece, following)
                covers += [(node, from_, to) for from_, to in going_on]
        return covers

    def _tokens_going_on(self, head: bytes, offset: int, piece: bytes, following: bytes) -> list[tuple[int, int]]:
        """Return ranges of the teacher's tokens that leave the text for a longer token of the student.

        Args:
            head: Bytes between the teacher's position and the student's token.
            offset: Or the bytes of the student's token before the teacher's position.
            piece: The student's token.
            following: The text after it.
        """
        text, found = piece + following, []
        for longer in self.student.longer_than(piece):
            shared = next((i for i, (a, b) in enumerate(zip(longer, text, strict=False)) if a != b), len(text))
            if shared >= len(longer) or shared < offset:  # the text itself goes on like this; or left it before
                continue
            rest = head + longer[offset:]
            found.append(self.teacher.beginning_with(rest))
            leaves = len(head) + shared - offset
            found += [self.teacher.spelling(rest[:length]) for length in range(leaves + 1, len(rest))]
        return union(found)


def _least(segment: TextSegment, before: Sequence[float]) -> list[float]:
    """Return the most likely single way to write each beginning or more: what is lost where masses are too small."""
    least, later = [], -math.inf
    for node in reversed(segment.nodes):
        later = later if node is None else max(later, before[node])
        least.append(later)
    return least[::-1]


def _reached(whole: Sequence[tuple[float, float]], is_canonical: Sequence[bool], later: float) -> list[float]:
    """Return log P up to each token: that of the bytes, less what goes on otherwise, at least what came true."""
    reached = []
    for (begins, goes_on), native in zip(reversed(whole), reversed(is_canonical), strict=True):
        fraction = math.exp(min(goes_on - begins, 0.0)) if begins > -math.inf else 1.0
        own = begins + math.log1p(-fraction) if fraction < 1 else -math.inf
        own = min(max(own, later), begins)
        reached.append(own)
        later = own if native else -math.inf
    return reached[::-1]
