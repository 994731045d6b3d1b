"""Scores of a batch by the credit `PrefixCredit`: the teacher reads the tree of a reply's beginnings in chunks."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_opd.errors import ConfigError
from lightning_opd.functional.logprobs import MAX_CHUNK_ELEMENTS, log_softmax
from lightning_opd.interfaces import ReadsTrees, Teacher
from lightning_opd.teachers.cross_tokenizer.prefix_distributions import Place, PrefixDistributions
from lightning_opd.teachers.cross_tokenizer.prefix_probabilities import Cover, PrefixProbabilities, Reply
from lightning_opd.teachers.cross_tokenizer.prefix_scores import PrefixScores, prefix_scores, terms_of
from lightning_opd.teachers.cross_tokenizer.prefix_tree import PrefixTree, prefix_tree, read_nodes, with_prompt
from lightning_opd.teachers.cross_tokenizer.token_bytes import TokenBytes
from lightning_opd.teachers.cross_tokenizer.translation import Translator
from lightning_opd.teachers.cross_tokenizer.views import replies_of
from lightning_opd.types import LinearHead, SampledTokens, Signal, TeacherScores, TokenTree

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
            raise ConfigError(msg)
        self._translator, self._scorer, self._top_k = translator, scorer, top_k
        self._tables: dict[torch.device, tuple[PrefixProbabilities, PrefixDistributions]] = {}

    @torch.no_grad()
    def score(self, batch: SampledTokens, signals: frozenset[Signal]) -> TeacherScores:
        """Score a batch of rollouts with their trajectories, reply by reply."""
        tables = self._tables_on(batch.token_ids.device)
        distributions = tables[1]
        top_k = self._top_k if Signal.TOP_LOGPROBS in signals else 0
        ids = batch.token_ids
        planned: deque[_Planned] = deque()  # those whose trees the scorer has asked for
        states = self._scorer.tree_hidden_states(self._plan(batch, bool(top_k), planned))
        logprobs = torch.zeros_like(batch.rollout_logprobs)
        aligned_mask = torch.zeros_like(batch.response_mask)
        size = min(top_k, len(self._translator.student))
        top_ids, top_logprobs = ids.new_zeros(*ids.shape, size), logprobs.new_full((*ids.shape, size), -torch.inf)
        for of_tree in states:
            plan, head = planned.popleft(), self._scorer.output_head()
            assert head is not None  # it read a tree
            row, columns = plan.row, plan.columns
            table = _Table(of_tree[plan.num_prompt - 1 :], head, head.temperature or batch.temperature, plan, tables[0])
            reply, token_scores = plan.scored(table, tables[0])
            logprobs[row, columns] = token_scores.logprobs.to(logprobs.dtype)
            aligned_mask[row, columns] = token_scores.is_scored
            if top_k:
                for part, likeliest, values in _top(distributions, reply, token_scores, plan.places, size):
                    top_ids[row, columns[part.start : part.stop]] = likeliest
                    top_logprobs[row, columns[part.start : part.stop]] = values.to(top_logprobs.dtype)
        return TeacherScores(logprobs, aligned_mask, *((top_ids, top_logprobs) if top_k else ()))

    def _plan(self, batch: SampledTokens, has_places: bool, planned: deque[_Planned]) -> Iterator[TokenTree]:
        """Yield the tree of each reply, and append what is known of the reply."""
        sums, distributions = self._tables_on(batch.token_ids.device)
        for row, trajectory in enumerate(batch.trajectories):
            for turn, columns in replies_of(trajectory, batch.response_mask[row].nonzero().squeeze(-1)):
                prompt, student_ids = self._translator.prompt(turn.messages), batch.token_ids[row, columns].tolist()
                tree = prefix_tree(self._translator, student_ids)
                terms = terms_of(tree.segments, sums)
                places = distributions.places(tree.segments, tree.controls) if has_places else []
                asked = {cover[0] for term in terms for cover in term} | {place.node for place in places}
                rows, read = read_nodes(tree, asked)
                planned.append(_Planned(row, columns, len(prompt), student_ids, tree, terms, places, rows))
                yield with_prompt(prompt, tree, rows, read)

    def _tables_on(self, device: torch.device) -> tuple[PrefixProbabilities, PrefixDistributions]:
        """Return the sums over both vocabularies, sorted once for each device."""
        if device not in self._tables:
            both = self._translator
            sides = (both.student_spelling, both.student), (both.teacher_spelling, both.teacher)
            student, teacher = (TokenBytes([s.token_bytes(i) for i in range(len(tokenizer))]) for s, tokenizer in sides)
            sums = PrefixProbabilities(student, teacher, device)
            self._tables[device] = sums, PrefixDistributions(sums, both.roles.pairs)
        return self._tables[device]


class _Planned(NamedTuple):
    """A reply whose tree is to be read."""

    row: int
    columns: Tensor
    num_prompt: int
    student_ids: list[int]
    tree: PrefixTree
    terms: list[Sequence[Cover]]
    places: list[Place]
    rows: list[int]

    def scored(self, table: _Table, sums: PrefixProbabilities) -> tuple[Reply, PrefixScores]:
        """Return the reply with what the teacher says, and its scores; the head is used once for each node."""
        covers = [cover for term in self.terms for cover in term]
        masses = sums.masses(covers, table.logprobs, self.rows)
        tree = self.tree
        reply = Reply(self.student_ids, tree.segments, tree.controls, table.before(), table.logprobs, rows=self.rows)
        return reply, prefix_scores(reply, sums, self.terms, masses)


def _top(
    distributions: PrefixDistributions, reply: Reply, token_scores: PrefixScores, places: Sequence[Place], k: int
) -> Iterator[tuple[range, Tensor, Tensor]]:
    """Yield ranges of the student's tokens with ids and log-probs of its k likeliest tokens at each."""
    step, num = max(1, MAX_CHUNK_ELEMENTS // distributions.vocab_size), len(reply.student_ids)
    for first in range(0, num, step):
        part = range(first, min(first + step, num))
        top = distributions(reply, token_scores, part, places).topk(k)
        yield part, top.indices, top.values.log()


class _Table:
    """What the teacher says at the nodes of one tree, computed for a range of rows at a time."""

    def __init__(
        self,
        states: Float[Tensor, "rows hidden"],
        head: LinearHead,
        temperature: float,
        plan: _Planned,
        sums: PrefixProbabilities,
    ) -> None:
        self._states, self._head, self._temperature, self._sums = states, head, temperature, sums
        self._parents, device = plan.tree.parents, states.device
        self._ids = torch.tensor(plan.tree.token_ids, device=device)
        rows = torch.tensor([plan.rows[parent] for parent in self._parents[1:]], dtype=torch.long, device=device)
        self._children = rows.argsort() + 1
        self._before = rows[self._children - 1]
        """The row before each child."""
        self._own = torch.full(self._ids.shape, -torch.inf, dtype=torch.float64, device=device)
        self._is_known = torch.zeros(len(states), dtype=torch.bool)
        self._last: tuple[range, Tensor] | None = None

    def _logprobs(self, rows: range) -> Float[Tensor, "rows vocab"]:
        """Return log-probs of the next token, and remember those of the tokens in the tree."""
        logprobs = log_softmax(self._head.logits(self._states[rows.start : rows.stop]), self._temperature)
        if not self._is_known[rows.start : rows.stop].all():
            self._is_known[rows.start : rows.stop] = True
            ends = torch.tensor([rows.start, rows.stop], device=logprobs.device)
            begin, end = torch.searchsorted(self._before, ends).tolist()
            children, before = self._children[begin:end], self._before[begin:end] - rows.start
            is_inside = self._ids[children] < self._head.vocab_size
            own = logprobs[before[is_inside], self._ids[children[is_inside]]].double()
            self._own[children[is_inside]] = own.clamp(min=IMPOSSIBLE_LOGPROB)
        return logprobs

    def logprobs(self, rows: range) -> Float[Tensor, "rows vocab"]:
        """Return what `Reply` asks for; the last answer is kept."""
        if self._last is None or self._last[0] != rows:
            self._last = None  # its memory, before the next
            self._last = rows, self._logprobs(rows)
        return self._last[1]

    def before(self) -> list[float]:
        """Return the log-prob (nats) of the tokens up to each node; −inf beyond one that the model does not know."""
        unknown = [row for row in self._before.unique().tolist() if not self._is_known[row]]
        for rows in self._sums.chunks(unknown):
            self._logprobs(rows)
        before = [0.0]
        for parent, logprob in zip(self._parents[1:], self._own[1:].tolist(), strict=True):
            before.append(before[parent] + logprob)
        return before
