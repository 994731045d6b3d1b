"""Scores of a batch by the credit `PrefixCredit`: the teacher reads the tree of each reply's beginnings."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lightning_opd.errors import ConfigError
from lightning_opd.functional.logprobs import MAX_CHUNK_ELEMENTS
from lightning_opd.interfaces import ReadsTrees, Teacher
from lightning_opd.teachers.cross_tokenizer.branch_choice import BranchChoice
from lightning_opd.teachers.cross_tokenizer.node_table import NodeTable
from lightning_opd.teachers.cross_tokenizer.prefix_distributions import Place, PrefixDistributions
from lightning_opd.teachers.cross_tokenizer.prefix_probabilities import Cover, PrefixProbabilities, Reply
from lightning_opd.teachers.cross_tokenizer.prefix_scores import PrefixScores, prefix_scores, terms_of
from lightning_opd.teachers.cross_tokenizer.prefix_tree import PrefixTree, prefix_tree
from lightning_opd.teachers.cross_tokenizer.token_bytes import TokenBytes
from lightning_opd.teachers.cross_tokenizer.translation import Translator
from lightning_opd.teachers.cross_tokenizer.views import replies_of
from lightning_opd.types import SampledTokens, Signal, TeacherScores, TokenTree


class TreeScorer:
    """Score batches by the teacher's probability of the student's text.

    Args:
        translator: From the student's tokens to the teacher's.
        scorer: Reads trees of its own tokens.
        top_k: Likeliest tokens of the student per position to report where they are asked for.
        tolerance: Largest error (nats) of each log P; see `PrefixCredit`.

    Raises:
        ValueError: The scorer has no states and no output layer to give.
    """

    def __init__(self, translator: Translator, scorer: Teacher, top_k: int, tolerance: float) -> None:
        """Refuse a scorer that cannot read trees."""
        if not isinstance(scorer, ReadsTrees):
            msg = (
                f"The credit `PrefixCredit` takes whole distributions, and {type(scorer).__name__} has none to give. "
                "Use a teacher in this process, or the credit `SpanCredit` or `ExactMatchCredit`."
            )
            raise ConfigError(msg)
        self._translator, self._scorer = translator, scorer
        self._top_k, self._tolerance = top_k, tolerance
        self._tables: dict[torch.device, tuple[PrefixProbabilities, PrefixDistributions]] = {}

    @torch.no_grad()
    def score(self, batch: SampledTokens, signals: frozenset[Signal]) -> TeacherScores:
        """Score a batch of rollouts with their trajectories, reply by reply."""
        sums, distributions = self._tables_on(batch.token_ids.device)
        top_k = self._top_k if Signal.TOP_LOGPROBS in signals else 0
        ids = batch.token_ids
        pending: deque[_PlannedReply] = deque()  # those whose trunks the scorer has asked for
        grown: deque[_PlannedReply] = deque()  # those whose branches it has, too

        def branches(states: Tensor) -> TokenTree:
            plan, head = pending.popleft(), self._scorer.output_head()
            assert head is not None  # it read a trunk
            plan.table = NodeTable(head, head.temperature or batch.temperature, plan.tree)
            grown.append(plan)
            return plan.branches(states, sums, self._tolerance)

        states = self._scorer.tree_hidden_states(self._trunks(batch, bool(top_k), pending), branches)
        logprobs = torch.zeros_like(batch.rollout_logprobs)
        aligned_mask = torch.zeros_like(batch.response_mask)
        size = min(top_k, len(self._translator.student))
        top_ids, top_logprobs = ids.new_zeros(*ids.shape, size), logprobs.new_full((*ids.shape, size), -torch.inf)
        for of_tree in states:
            plan = grown.popleft()
            row, columns = plan.row, plan.columns
            reply, token_scores = plan.scored(of_tree, sums)
            logprobs[row, columns] = token_scores.logprobs.to(logprobs.dtype)
            aligned_mask[row, columns] = token_scores.is_scored
            if top_k:
                for part, likeliest, values in _top(distributions, reply, token_scores, plan.known_places(), size):
                    top_ids[row, columns[part.start : part.stop]] = likeliest
                    top_logprobs[row, columns[part.start : part.stop]] = values.to(top_logprobs.dtype)
        return TeacherScores(logprobs, aligned_mask, *((top_ids, top_logprobs) if top_k else ()))

    def _trunks(self, batch: SampledTokens, has_places: bool, planned: deque[_PlannedReply]) -> Iterator[Sequence[int]]:
        """Yield the trunk of each reply's tree after its prompt, and append what is known of the reply."""
        sums, distributions = self._tables_on(batch.token_ids.device)
        for row, trajectory in enumerate(batch.trajectories):
            for turn, columns in replies_of(trajectory, batch.response_mask[row].nonzero().squeeze(-1)):
                prompt, student_ids = self._translator.prompt(turn.messages), batch.token_ids[row, columns].tolist()
                tree = prefix_tree(self._translator, student_ids)
                terms = terms_of(tree.segments, sums)
                places = distributions.places(tree.segments, tree.controls) if has_places else []
                planned.append(_PlannedReply(row, columns, len(prompt), student_ids, tree, terms, places))
                yield [*prompt, *planned[-1].trunk_ids()]

    def _tables_on(self, device: torch.device) -> tuple[PrefixProbabilities, PrefixDistributions]:
        """Return the sums over both vocabularies, sorted once for each device."""
        if device not in self._tables:
            both = self._translator
            sides = (both.student_spelling, both.student), (both.teacher_spelling, both.teacher)
            student, teacher = (TokenBytes([s.token_bytes(i) for i in range(len(tokenizer))]) for s, tokenizer in sides)
            sums = PrefixProbabilities(student, teacher, device)
            self._tables[device] = sums, PrefixDistributions(sums, both.roles.pairs)
        return self._tables[device]


@dataclass
class _PlannedReply:
    """A reply whose tree is to be read: its trunk first, then the branches that are likely enough."""

    row: int
    columns: Tensor
    num_prompt: int
    student_ids: list[int]
    tree: PrefixTree
    terms: list[Sequence[Cover]]
    places: list[Place]
    masses: dict[Cover, float] = field(default_factory=dict)
    needed: list[int] = field(default_factory=list)
    table: NodeTable | None = None

    def trunk_ids(self) -> list[int]:
        """Return the tokens of the trunk that have to be read after the prompt."""
        return [self.tree.token_ids[node] for node in self._trunk()[1:]]

    def _trunk(self) -> list[int]:
        """Return its nodes; without the last one where nobody asks what may follow that."""
        trunk, end = self.tree.trunk(), self.tree.end
        asked = (*(cover[0] for term in self.terms for cover in term), *(place.node for place in self.places))
        return trunk if not end or end in asked or end in self.tree.parents else trunk[:-1]

    def branches(self, states: Tensor, sums: PrefixProbabilities, tolerance: float) -> TokenTree:
        """Return the nodes to read beside the trunk, when its states are known."""
        assert self.table is not None
        before = self._read(self._trunk(), states[self.num_prompt - 1 :], sums)
        choice = BranchChoice(self.tree, tolerance)
        self.needed = choice(choice.demands(sums, self.terms, self.masses, before, self.places), before)
        last, num_trunk = self.num_prompt - 1, len(self.table)
        rows = {node: num_trunk + i for i, node in enumerate(self.needed)}
        parents = [last + rows.get(p, self.table.rows[p]) for p in (self.tree.parents[n] for n in self.needed)]
        return TokenTree([self.tree.token_ids[node] for node in self.needed], parents)

    def scored(self, states: Tensor, sums: PrefixProbabilities) -> tuple[Reply, PrefixScores]:
        """Return the reply with what the teacher says, and its scores; the head is used once for each node."""
        assert self.table is not None
        tree, table = self.tree, self.table
        before = self._read(self.needed, states, sums)
        reply = Reply(self.student_ids, tree.segments, tree.controls, before, table.logprobs, rows=table.rows)
        return reply, prefix_scores(reply, sums, self.terms, self.masses)

    def _read(self, nodes: Sequence[int], states: Tensor, sums: PrefixProbabilities) -> list[float]:
        """Add nodes that have been read; return the log-probs (nats) up to each node, as far as they are known."""
        assert self.table is not None
        self.table.add(nodes, states)
        covers = {cover for term in self.terms for cover in term if self.table.rows[cover[0]] >= 0}
        self.masses |= sums.masses(sorted(covers - self.masses.keys()), self.table.logprobs, self.table.rows)
        return self.table.before(sums)

    def known_places(self) -> list[Place]:
        """Return the places at nodes that have been read."""
        assert self.table is not None
        return [place for place in self.places if self.table.rows[place.node] >= 0]


def _top(
    distributions: PrefixDistributions, reply: Reply, token_scores: PrefixScores, places: Sequence[Place], k: int
) -> Iterator[tuple[range, Tensor, Tensor]]:
    """Yield ranges of the student's tokens with ids and log-probs of its k likeliest tokens at each."""
    step, num = max(1, MAX_CHUNK_ELEMENTS // distributions.vocab_size), len(reply.student_ids)
    for first in range(0, num, step):
        part = range(first, min(first + step, num))
        top = distributions(reply, token_scores, part, places).topk(k)
        yield part, top.indices, top.values.log()
