"""Scores of a batch by the credit `PrefixCredit`: the teacher reads all beginnings of all replies in one forward."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_opd.functional.logprobs import MAX_CHUNK_ELEMENTS, log_softmax
from lightning_opd.interfaces import ReadsTrees, Teacher
from lightning_opd.teachers.cross_tokenizer.prefix_distributions import PrefixDistributions
from lightning_opd.teachers.cross_tokenizer.prefix_probabilities import PrefixProbabilities, Reply
from lightning_opd.teachers.cross_tokenizer.prefix_scores import PrefixScores, prefix_scores
from lightning_opd.teachers.cross_tokenizer.prefix_tree import PrefixTree, pack, prefix_tree
from lightning_opd.teachers.cross_tokenizer.token_bytes import TokenBytes
from lightning_opd.teachers.cross_tokenizer.translation import Translator
from lightning_opd.teachers.cross_tokenizer.views import replies_of
from lightning_opd.types import LinearHead, SampledTokens, Signal, TeacherScores

IMPOSSIBLE_LOGPROB = -1e3
"""Stands (nats) for a token to which the teacher gives no probability at all: a bad score, yet a known one."""


class TreeScorer:
    """Score batches by the teacher's probability of the student's text.

    Args:
        translator: From the student's tokens to the teacher's.
        scorer: Reads trees of its own tokens.
        top_k: Likeliest tokens of the student per position to report where they are asked for.

    Raises:
        ValueError: The scorer has no states and no output layer to give.
    """

    def __init__(self, translator: Translator, scorer: Teacher, top_k: int) -> None:
        """Refuse a scorer that cannot read trees."""
        if not isinstance(scorer, ReadsTrees):
            msg = (
                f"The credit `PrefixCredit` takes whole distributions, and {type(scorer).__name__} has none to give. "
                "Use a teacher in this process, or the credit `SpanCredit` or `ExactMatchCredit`."
            )
            raise ValueError(msg)
        self._translator, self._scorer, self._top_k = translator, scorer, top_k
        self._tables: dict[torch.device, tuple[PrefixProbabilities, PrefixDistributions]] = {}

    @torch.no_grad()
    def score(self, batch: SampledTokens, signals: frozenset[Signal]) -> TeacherScores:
        """Score a batch of rollouts with their trajectories, reply by reply."""
        sums, distributions = self._tables_on(batch.token_ids.device)
        top_k = self._top_k if Signal.TOP_LOGPROBS in signals else 0
        ids = batch.token_ids
        replies = [
            (
                row,
                columns,
                self._translator.prompt(turn.messages),
                prefix_tree(self._translator, ids[row, columns].tolist()),
            )
            for row, trajectory in enumerate(batch.trajectories)
            for turn, columns in replies_of(trajectory, batch.response_mask[row].nonzero().squeeze(-1))
        ]
        packed = pack([prompt for _, _, prompt, _ in replies], [tree for *_, tree in replies], ids.device)
        states, head = self._scorer.tree_hidden_states(*packed), self._scorer.output_head()
        assert head is not None  # it read a tree
        logprobs = torch.zeros_like(batch.rollout_logprobs)
        aligned_mask = torch.zeros_like(batch.response_mask)
        size = min(top_k, len(self._translator.student))
        top_ids, top_logprobs = ids.new_zeros(*ids.shape, size), logprobs.new_full((*ids.shape, size), -torch.inf)
        for of_row, (row, columns, prompt, tree) in zip(states, replies, strict=True):
            nodes = of_row[len(prompt) - 1 : len(prompt) - 1 + len(tree.token_ids)]
            table = _Table(nodes, head, head.temperature or batch.temperature, sums)
            student_ids = ids[row, columns].tolist()
            reply = Reply(student_ids, tree.segments, tree.controls, table.before(tree), table.probabilities)
            token_scores = prefix_scores(reply, sums)
            logprobs[row, columns] = token_scores.logprobs.to(logprobs.dtype)
            aligned_mask[row, columns] = token_scores.is_scored
            if top_k:
                for part, likeliest, values in _top(distributions, reply, token_scores, size):
                    top_ids[row, columns[part.start : part.stop]] = likeliest
                    top_logprobs[row, columns[part.start : part.stop]] = values.to(top_logprobs.dtype)
        return TeacherScores(logprobs, aligned_mask, *((top_ids, top_logprobs) if top_k else ()))

    def _tables_on(self, device: torch.device) -> tuple[PrefixProbabilities, PrefixDistributions]:
        """Return the sums over both vocabularies, sorted once for each device."""
        if device not in self._tables:
            both = self._translator
            sides = (both.student_spelling, both.student), (both.teacher_spelling, both.teacher)
            student, teacher = (TokenBytes([s.token_bytes(i) for i in range(len(tokenizer))]) for s, tokenizer in sides)
            sums = PrefixProbabilities(student, teacher, device)
            self._tables[device] = sums, PrefixDistributions(sums, both.roles.pairs)
        return self._tables[device]


def _top(
    distributions: PrefixDistributions, reply: Reply, token_scores: PrefixScores, k: int
) -> Iterator[tuple[range, Tensor, Tensor]]:
    """Yield ranges of the student's tokens with ids and log-probs of its k likeliest tokens at each."""
    step, num = max(1, MAX_CHUNK_ELEMENTS // distributions.vocab_size), len(reply.student_ids)
    for first in range(0, num, step):
        part = range(first, min(first + step, num))
        top = distributions(reply, token_scores, part).topk(k)
        yield part, top.indices, top.values.log()


class _Table:
    """What the teacher says at the nodes of one tree, computed for a range of nodes at a time."""

    def __init__(
        self, states: Float[Tensor, "nodes hidden"], head: LinearHead, temperature: float, sums: PrefixProbabilities
    ) -> None:
        self._states, self._head, self._temperature, self._sums = states, head, temperature, sums
        self._last: tuple[range, Tensor] | None = None

    def _logprobs(self, nodes: range) -> Float[Tensor, "nodes vocab"]:
        return log_softmax(self._head.logits(self._states[nodes.start : nodes.stop]), self._temperature)

    def probabilities(self, nodes: range) -> Float[Tensor, "nodes vocab"]:
        """Return what `Reply` asks for; the last answer is kept."""
        if self._last is None or self._last[0] != nodes:
            self._last = nodes, self._sums.sort(self._logprobs(nodes))
        return self._last[1]

    def before(self, tree: PrefixTree) -> list[float]:
        """Return the log-prob (nats) of the tokens up to each node; −inf beyond one that the model does not know."""
        device = self._states.device
        parents, ids = (torch.tensor(x[1:], dtype=torch.long, device=device) for x in (tree.parents, tree.token_ids))
        own = torch.full(ids.shape, -torch.inf, dtype=torch.float64, device=device)
        is_known = ids < self._head.vocab_size
        for nodes in self._sums.chunks(tree.parents[1:]):
            is_inside = is_known & (parents >= nodes.start) & (parents < nodes.stop)
            logprobs = self._logprobs(nodes).double()[parents[is_inside] - nodes.start, ids[is_inside]]
            own[is_inside] = logprobs.clamp(min=IMPOSSIBLE_LOGPROB)
        before = [0.0]
        for parent, logprob in zip(tree.parents[1:], own.tolist(), strict=True):
            before.append(before[parent] + logprob)
        return before
