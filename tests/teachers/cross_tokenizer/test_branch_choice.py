from __future__ import annotations

import functools
import math
import random
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from lightning_opd.errors import ConfigError
from lightning_opd.functional.credit import PrefixCredit
from lightning_opd.teachers.cross_tokenizer.branch_choice import BranchChoice, Demand
from lightning_opd.teachers.cross_tokenizer.prefix_probabilities import Reply
from lightning_opd.teachers.cross_tokenizer.prefix_scores import PrefixScores, prefix_scores, terms_of
from lightning_opd.teachers.cross_tokenizer.prefix_tree import PrefixTree
from tests.teachers.cross_tokenizer.random_pairs import (
    NUM_RANDOM,
    distributions_of,
    merged_texts,
    random_reply,
    random_translator,
    sums_of,
)
from tests.teachers.cross_tokenizer.texts import rows_of

STOP = "<|im_end|>"
MERGED = merged_texts()


def branched_tree() -> PrefixTree:
    """A trunk of nodes 0, 1, 2 with a branch of two nodes and one of one node after node 0."""
    tree = PrefixTree([-1, 5, 6, 7, 8, 9], [-1, 0, 1, 0, 3, 0])
    tree.end = 2
    return tree


def test_branches_are_left_out_as_long_as_all_of_them_together_do_not_matter() -> None:
    tree, tolerance = branched_tree(), 0.1
    choice = BranchChoice(tree, tolerance)
    allowed = -math.expm1(-tolerance)
    before = [0.0, -1.0, -2.0, math.log(allowed * 0.4), -math.inf, math.log(allowed * 0.5)]
    assert choice([Demand([1, 4, 5], 0.0)], before) == []
    assert choice([Demand([1, 4, 5], math.log(0.8))], before) == [5], "the likeliest is read"
    assert choice([Demand([4], math.log(0.8)), Demand([5], math.log(0.8))], before) == []
    assert choice([Demand([4, 4, 3], math.log(0.3))], before) == [3, 4], "and what leads to a node"
    assert choice([Demand([4, 5], -math.inf)], before) == [3, 4, 5]
    assert BranchChoice(tree, 0.0)([Demand([4, 5], 0.0)], before) == [3, 4, 5]


@dataclass
class Branched:
    """A random reply of which the branches, once taken, go on to what somebody asks for.

    Args:
        seed: Of the tokenizers, the text and the teacher.
    """

    seed: int

    def __post_init__(self) -> None:
        noise = random.Random(self.seed)
        pair = self.seed % NUM_RANDOM
        self.both = both = random_translator(pair, (7 * pair + 3) % NUM_RANDOM)
        self.sums, self.distributions = sums_of(both), distributions_of(both)
        text = "".join(noise.choice(MERGED) for _ in range(8))
        self.token_ids = [*both.student_spelling.encode(text.encode()), both.student.get_vocab()[STOP]]
        self.tree, _ = random_reply(both, self.token_ids, self.seed)
        self.trunk = set(self.tree.trunk())
        self.terms = terms_of(self.tree.segments, self.sums)
        self.places = self.distributions.places(self.tree.segments, self.tree.controls)
        self.table = self._teacher(noise)
        known = range(1, len(self.tree.token_ids))
        self.before = [0.0]
        for node in known:
            parent = self.tree.parents[node]
            self.before.append(self.before[parent] + float(self.table[parent, self.tree.token_ids[node]]))
        self.masses = self.sums.masses([cover for term in self.terms for cover in term], rows_of(self.table))

    def _teacher(self, noise: random.Random) -> Tensor:
        """Return log-probs of a teacher, at random; at each branch's node all goes to one cover, or one place."""
        generator = torch.Generator().manual_seed(self.seed)
        shape = len(self.tree.token_ids), len(self.both.teacher)
        logits = noise.choice([1.0, 4.0, 8.0]) * torch.randn(shape, generator=generator, dtype=torch.float64)
        covers = [cover for term in self.terms for cover in term if cover[0] not in self.trunk]
        noise.shuffle(covers)
        for node, first, stop in {cover[0]: cover for cover in covers}.values():
            logits[node, self.sums.teacher.sorted_ids[first:stop]] += 30.0
        return torch.log_softmax(logits, dim=-1)

    def reply(self, read: set[int]) -> Reply:
        """Return the reply as far as a teacher that has read some nodes knows it."""
        parents = self.tree.parents
        known = [0.0, *(x if parents[n] in read else -math.inf for n, x in enumerate(self.before[1:], 1))]
        return Reply(self.token_ids, self.tree.segments, self.tree.controls, known, rows_of(self.table))

    def scores(self, read: set[int]) -> tuple[PrefixScores, Tensor]:
        """Return its scores and distributions, from these nodes."""
        reply, masses = self.reply(read), {cover: mass for cover, mass in self.masses.items() if cover[0] in read}
        scores = prefix_scores(reply, self.sums, self.terms, masses)
        places = [place for place in self.places if place.node in read]
        return scores, self.distributions(reply, scores, places=places)

    def read(self, tolerance: float) -> set[int]:
        """Return the nodes that have to be read."""
        choice, before = BranchChoice(self.tree, tolerance), self.reply(self.trunk).before
        masses = {cover: mass for cover, mass in self.masses.items() if cover[0] in self.trunk}
        return self.trunk.union(choice(choice.demands(self.sums, self.terms, masses, before, self.places), before))


@functools.cache
def branched(seed: int) -> Branched:
    return Branched(seed)


@pytest.mark.parametrize("tolerance", [0.0, 0.05, 0.5])
def test_scores_without_unlikely_branches_are_off_by_no_more_than_the_tolerance(tolerance: float) -> None:
    num_left_out, largest = 0, 0.0
    for seed in range(60):
        one = branched(seed)
        everything = set(range(len(one.tree.token_ids)))
        read = one.read(tolerance)
        assert all(one.tree.parents[node] in read for node in read - {0})
        num_left_out += len(everything) - len(read)
        (exact, all_rows), (scores, rows) = one.scores(everything), one.scores(read)
        assert torch.equal(scores.is_scored, exact.is_scored)
        errors = [abs(a - b) for a, b in zip(scores.starts, exact.starts, strict=True)]
        largest = max([largest, *errors])
        assert max(errors) <= tolerance + 1e-8
        assert float((scores.logprobs - exact.logprobs).abs().max()) <= 2 * tolerance + 1e-8
        assert float(scores.logprobs.sum()) == pytest.approx(float(exact.logprobs.sum()), abs=1e-8)
        differences = torch.where((rows > 0) & (all_rows > 0), rows - all_rows, 0.0)
        assert float(differences.abs().max()) <= 2 * math.expm1(tolerance) + 1e-8
    assert num_left_out > 20 or not tolerance  # 35 to 56: trained tokenizers differ a little from run to run
    assert largest >= tolerance / 100, "the bound is worth stating"


def test_a_tolerance_is_a_number_of_nats() -> None:
    for tolerance in (-1e-9, math.inf, math.nan):
        with pytest.raises(ConfigError, match=r"`tolerance` of `PrefixCredit`.*0 or more.*default"):
            PrefixCredit(tolerance)
    assert PrefixCredit(0.0) != PrefixCredit()
