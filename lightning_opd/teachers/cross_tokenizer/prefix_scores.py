"""Scores of the student's tokens by the probability of the text up to each of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lightning_opd.teachers.cross_tokenizer.prefix_probabilities import (
    Cover,
    PrefixProbabilities,
    Reply,
    TextSegment,
)

NONCANONICAL_LOGPROB = -20.0
"""Log-prob (nats) of a token with which the student's own tokenizer would not write the text: the teacher knows
texts, not the student's ways to split them."""


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


def prefix_scores(
    reply: Reply,
    sums: PrefixProbabilities,
    terms: Sequence[Sequence[Cover]] | None = None,
    masses: Mapping[Cover, float] | None = None,
) -> PrefixScores:
    """Return the log-probs (float64) of the student's tokens of a reply.

    Token i gets log P(tokens ≤ i) − log P(tokens < i), where P is the probability that the teacher's text begins with
    these bytes. If the student has longer tokens that begin like token i, texts that go on to those are taken off P:
    the student would have split them otherwise. No score therefore says what follows, and the scores of a reply add
    up to the teacher's log-prob of its text.

    Exact for a teacher that generates only its tokenizer's own tokenisations, if their beginnings are tokenisations of
    its own, too (byte-pair encodings; nearly so where a pattern splits the text first), but for one thing: where it
    begins a longer token of the student with several tokens of its own that leave the text, it is taken to finish it.

    Args:
        reply: The reply, and what the teacher says about it.
        sums: Of both vocabularies.
        terms: Those of the reply's segments, if they are known; see `terms_of`.
        masses: Of the covers in `terms`, if they are known; a cover that is missing counts as 0.

    Reference:
        Vieira et al., From language models over tokens to language models over characters (2024).
    """
    num = len(reply.student_ids)
    logprobs, is_scored, starts = [0.0] * num, [False] * num, [0.0] * num
    ends: dict[int, float] = {}  # log P after the last student token of a segment
    if terms is None:
        terms = terms_of(reply.segments, sums)
    if masses is None:
        masses = sums.masses([cover for term in terms for cover in term], reply.logprobs, reply.rows)
    log_sums = iter(sums.log_sums(terms, masses, reply.before))
    for segment in reply.segments:
        least, begin = least_logprobs(segment, reply.before), segment.student_spans[0][0]
        start = max(next(log_sums), least[begin])
        last = start if begin else reply.before[segment.root]
        later = -math.inf if segment.next_node is None else reply.before[segment.next_node]
        whole = [(max(next(log_sums), least[end]), next(log_sums)) for _, end in segment.student_spans]
        reached = reached_logprobs(whole, segment.is_canonical, later)
        for i, ((begins, _), own, is_canonical) in enumerate(zip(whole, reached, segment.is_canonical, strict=True)):
            index = segment.first_student + i
            starts[index], is_scored[index] = last, segment.is_same[i]
            logprobs[index] = (own if is_canonical else begins + NONCANONICAL_LOGPROB) - last
            last = own if is_canonical else begins
        ends[segment.first_student + len(whole) - 1] = last
    for index, node, node_before in reply.controls:
        starts[index], is_scored[index] = ends.get(index - 1, reply.before[node_before]), True
        logprobs[index] = reply.before[node] - starts[index]
    for index in range(num):  # what follows a token that the teacher's model does not know
        if not math.isfinite(logprobs[index]):
            logprobs[index], is_scored[index] = 0.0, False
    return PrefixScores(
        torch.tensor(logprobs, dtype=torch.float64, device=sums.device),
        torch.tensor(is_scored, dtype=torch.bool, device=sums.device),
        starts,
    )


def terms_of(segments: Sequence[TextSegment], sums: PrefixProbabilities) -> list[Sequence[Cover]]:
    """Return the covers to sum up: of each segment's begin, then two lists for each of its student tokens."""
    terms: list[Sequence[Cover]] = []
    for segment in segments:
        terms.append(sums.covers(segment, segment.student_spans[0][0]))
        for index, (_, end) in enumerate(segment.student_spans):
            longer = sums.longer_covers(segment, index) if segment.is_canonical[index] else []
            terms += [sums.covers(segment, end), longer]
    return terms


def least_logprobs(segment: TextSegment, before: Sequence[float]) -> list[float]:
    """Return a lower bound of log P of each beginning: its most likely single tokenisation, or a longer one's.

    It replaces a sum of masses that rounding has swallowed (P below the precision of a cumulative sum).
    """
    least, later = [], -math.inf
    for node in reversed(segment.nodes):
        later = later if node is None else max(later, before[node])
        least.append(later)
    return least[::-1]


def reached_logprobs(whole: Sequence[tuple[float, float]], is_canonical: Sequence[bool], later: float) -> list[float]:
    """Return log P up to each token: of its bytes, less the texts that go on to a longer token.

    The difference may round to less than what the reply itself did afterwards, or to nothing. P never increases along
    a text, so that the value at the next token is a lower bound; hence the loop from the end.

    Args:
        whole: For each token log P of the bytes up to its end, and of the texts that go on to a longer token.
        is_canonical: Whether the student's tokenizer splits the text there.
        later: log P at the control token after the text.
    """
    reached = []
    for (begins, goes_on), counts in zip(reversed(whole), reversed(is_canonical), strict=True):
        if math.isnan(begins + goes_on):  # comparisons below would hide it
            later = math.nan
            reached.append(later)
            continue
        fraction = math.exp(min(goes_on - begins, 0.0)) if begins > -math.inf else 1.0
        own = begins + math.log1p(-fraction) if fraction < 1 else -math.inf
        own = min(max(own, later), begins)
        reached.append(own)
        later = own if counts else -math.inf
    return reached[::-1]
