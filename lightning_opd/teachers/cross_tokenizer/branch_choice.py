"""Which branches of a tree are likely enough to be read."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from lightning_opd.teachers.cross_tokenizer.prefix_distributions import Place
from lightning_opd.teachers.cross_tokenizer.prefix_probabilities import Cover, PrefixProbabilities
from lightning_opd.teachers.cross_tokenizer.prefix_scores import least_logprobs, reached_logprobs
from lightning_opd.teachers.cross_tokenizer.prefix_tree import PrefixTree


class Demand(NamedTuple):
    """Nodes after which the teacher's probabilities are asked for.

    Args:
        nodes: The nodes.
        least: A lower bound (nats) of the log of the probability that they are compared with.
    """

    nodes: Sequence[int]
    least: float


class BranchChoice:
    """Choose the branches of a tree that have to be read, when its trunk has been.

    The trunk says how likely the first token of each branch is. All that a branch adds to a probability is at most
    that: it is left out where the branches left out together are a fraction of at most 1 − exp(−tolerance) of what
    the trunk alone adds. Each log P is then off by at most `tolerance` nats, and so is a token's own part of it: what
    goes on to a longer token of the student is bounded against what is left after it is taken off.

    Args:
        tree: The tree.
        tolerance: Largest error (nats) of each log-prob; 0 for none.
    """

    def __init__(self, tree: PrefixTree, tolerance: float) -> None:
        """Find the branches."""
        self._tree, self._fraction = tree, -math.expm1(-tolerance)
        trunk = set(tree.trunk())
        self._branches = [-1] * len(tree.token_ids)
        """The first node of each node's branch; −1 on the trunk."""
        for node, parent in enumerate(tree.parents):
            if node not in trunk:
                self._branches[node] = node if parent in trunk else self._branches[parent]

    def __call__(self, demands: Iterable[Demand], before: Sequence[float]) -> list[int]:
        """Return the nodes outside the trunk that have to be read, ascending.

        Args:
            demands: What is asked for.
            before: Log-prob (nats) up to and including each node, as far as the trunk says it; else −inf.
        """
        needed = set[int]()
        for nodes, least in demands:
            of_branch: dict[int, list[int]] = {}
            for node in nodes:
                if self._branches[node] >= 0:
                    of_branch.setdefault(self._branches[node], []).append(node)
            total = 0.0
            for branch in sorted(of_branch, key=before.__getitem__):
                total += _ratio(before[branch], least)
                if total > self._fraction:
                    needed.update(of_branch[branch])
        found = set[int]()
        for last in needed:
            node = last
            while self._branches[node] >= 0 and node not in found:
                found.add(node)
                node = self._tree.parents[node]
        return sorted(found)

    def demands(
        self,
        sums: PrefixProbabilities,
        terms: Sequence[Sequence[Cover]],
        masses: Mapping[Cover, float],
        before: Sequence[float],
        places: Sequence[Place],
    ) -> Iterator[Demand]:
        """Yield what the scores of a reply, and the probabilities at its places, ask for.

        Args:
            sums: Of both vocabularies.
            terms: Of the reply; see `terms_of`.
            masses: Of the covers on the trunk.
            before: See `__call__`.
            places: Where probabilities of other tokens are wanted.
        """
        starts: dict[int, float] = {}
        of_terms = iter(zip(terms, sums.log_sums(terms, masses, before), strict=True))
        for segment in self._tree.segments:
            least, begin = least_logprobs(segment, before), segment.student_spans[0][0]
            term, log_sum = next(of_terms)
            yield Demand([node for node, _, _ in term], max(log_sum, least[begin]))
            last = max(log_sum, least[begin]) if begin else before[segment.root]
            pairs, bounds = [], []
            for _, end in segment.student_spans:
                (covers, begins), (longer, goes_on) = next(of_terms), next(of_terms)
                nodes, of_longer = [node for node, _, _ in covers], [node for node, _, _ in longer]
                pairs.append((nodes, of_longer))
                bounds.append((max(begins, least[end]), self._most(goes_on, of_longer, before)))
            later = -math.inf if segment.next_node is None else before[segment.next_node]
            reached = reached_logprobs(bounds, segment.is_canonical, later)
            for i, (own, is_canonical) in enumerate(zip(reached, segment.is_canonical, strict=True)):
                starts[segment.first_student + i] = last
                last = own if is_canonical else bounds[i][0]
                yield from (Demand(nodes, last) for nodes in pairs[i])
            starts[segment.first_student + len(bounds)] = last
        at: dict[int, list[int]] = {}
        for place in places:
            at.setdefault(place.student_index, []).append(place.node)
        yield from (Demand(nodes, starts.get(index, -math.inf)) for index, nodes in at.items())

    def _most(self, log_sum: float, nodes: Sequence[int], before: Sequence[float]) -> float:
        """Return an upper bound (nats) of a log-sum: the trunk's part of it, and the branches whole."""
        branches = {self._branches[node] for node in nodes} - {-1}
        parts = [log_sum, *(before[branch] for branch in branches)]
        largest = max(parts)
        return largest if largest == -math.inf else largest + math.log(sum(math.exp(x - largest) for x in parts))


def _ratio(logprob: float, other: float) -> float:
    """Return exp(logprob − other), at most 1; 1 if both are 0."""
    return 1.0 if logprob >= other else math.exp(logprob - other)
