from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_opd.errors import ConfigError
from lightning_opd.functional.credit import PrefixCredit
from lightning_opd.teachers.cross_tokenizer.branch_choice import BranchChoice, Demand
from lightning_opd.teachers.cross_tokenizer.prefix_probabilities import Reply
from lightning_opd.teachers.cross_tokenizer.prefix_scores import prefix_scores, terms_of
from lightning_opd.teachers.cross_tokenizer.prefix_tree import PrefixTree
from tests.teachers.cross_tokenizer.random_pairs import (
    distributions_of,
    pairs,
    random_reply,
    random_translator,
    sums_of,
    texts,
)

STOP = "<|im_end|>"


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


@settings(max_examples=60, deadline=None)
@given(
    pair=pairs,
    text=texts,
    seed=st.integers(0, 99),
    scale=st.sampled_from([3.0, 20.0]),
    tolerance=st.sampled_from([0.0, 1e-4, 0.05, 1.0]),
)
def test_scores_without_unlikely_branches_are_off_by_no_more_than_the_tolerance(
    pair: tuple[int, int], text: str, seed: int, scale: float, tolerance: float
) -> None:
    both = random_translator(*pair)
    sums, distributions = sums_of(both), distributions_of(both)
    token_ids = [*both.student_spelling.encode(text.encode()), both.student.get_vocab()[STOP]]
    tree, whole = random_reply(both, token_ids, seed, scale)
    terms, places = terms_of(tree.segments, sums), distributions.places(tree.segments, tree.controls)
    exact = prefix_scores(whole, sums, terms)
    trunk = set(tree.trunk())
    masses = sums.masses([c for term in terms for c in term], whole.logprobs)
    of_trunk = {cover: mass for cover, mass in masses.items() if cover[0] in trunk}

    def known(read: set[int]) -> list[float]:
        return [0.0, *(whole.before[n] if tree.parents[n] in read else -math.inf for n in range(1, len(whole.before)))]

    choice, before = BranchChoice(tree, tolerance), known(trunk)
    demands = choice.demands(sums, terms, of_trunk, before, places)
    read = trunk.union(choice(demands, before))
    assert all(tree.parents[node] in read for node in read - {0})
    reply = Reply(token_ids, tree.segments, tree.controls, known(read), whole.logprobs)
    scores = prefix_scores(reply, sums, terms, {cover: mass for cover, mass in masses.items() if cover[0] in read})
    assert torch.equal(scores.is_scored, exact.is_scored)
    for one, other in zip(scores.starts, exact.starts, strict=True):
        assert one == pytest.approx(other, abs=tolerance + 1e-8)
    assert float((scores.logprobs - exact.logprobs).abs().max()) <= 2 * tolerance + 1e-8
    assert float(scores.logprobs.sum()) == pytest.approx(float(exact.logprobs.sum()), abs=1e-8)
    rows = distributions(reply, scores, places=[place for place in places if place.node in read])
    all_rows = distributions(whole, exact, places=places)
    difference = torch.where((rows > 0) & (all_rows > 0), rows - all_rows, 0.0).abs()
    assert float(difference.max()) <= 3 * math.expm1(tolerance) + 1e-8


def test_a_tolerance_is_a_number_of_nats() -> None:
    for tolerance in (-1e-9, math.inf, math.nan):
        with pytest.raises(ConfigError, match=r"`tolerance` of `PrefixCredit`.*0 or more.*default"):
            PrefixCredit(tolerance)
    assert PrefixCredit(0.0) != PrefixCredit()
