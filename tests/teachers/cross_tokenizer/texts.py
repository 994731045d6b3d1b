"""An enumerable world: all texts of three characters, a student and a teacher with a merge each or none."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import torch
from torch import Tensor

from lightning_opd.functional.advantages import AdvantageEstimator
from lightning_opd.functional.alignment import Alignment, align
from lightning_opd.functional.credit import AlignedCredit, PrefixCredit
from lightning_opd.teachers.cross_tokenizer.prefix_distributions import PrefixDistributions
from lightning_opd.teachers.cross_tokenizer.prefix_probabilities import PrefixProbabilities, Reply, TextSegment
from lightning_opd.teachers.cross_tokenizer.prefix_scores import prefix_scores
from lightning_opd.teachers.cross_tokenizer.token_bytes import TokenBytes

WORLDS = {"the teacher merges": ((), ("ab",)), "the student merges": (("ab",), ()), "both merge": (("ab",), ("ba",))}
"""Name → merges of the student, merges of the teacher."""

TEXTS = ["".join(letters) for letters in itertools.product("ab", repeat=3)]


def tokens_of(text: str, merges: tuple[str, ...]) -> list[str]:
    """Tokenise a text as a byte-pair encoding does."""
    tokens = list(text)
    for merge in merges:
        i = 0
        while i < len(tokens) - 1:
            if tokens[i] + tokens[i + 1] == merge:
                tokens[i : i + 2] = [merge]
            i += 1
    return tokens


def rows_of(table: Tensor) -> Callable[[range], Tensor]:
    """Return what gives the rows of a range."""
    return lambda rows: table[rows.start : rows.stop]


def spans_of(tokens: list[str]) -> list[tuple[int, int]]:
    ends = list(itertools.accumulate(map(len, tokens)))
    return list(zip([0, *ends[:-1]], ends, strict=True))


class Policy:
    """A distribution over the canonical tokenisations of all texts: one softmax per prefix of tokens."""

    def __init__(self, merges: tuple[str, ...]) -> None:
        self.sequences = [tokens_of(text, merges) for text in TEXTS]
        children: dict[tuple[str, ...], list[str]] = {}
        self.children = children
        for tokens in self.sequences:
            for i, token in enumerate(tokens):
                following = children.setdefault(tuple(tokens[:i]), [])
                if token not in following:
                    following.append(token)
        width = max(map(len, children.values()))
        state = {prefix: i for i, prefix in enumerate(children)}
        self.allowed = torch.tensor([[i < len(following) for i in range(width)] for following in children.values()])
        self.indices = [
            torch.tensor([(state[tuple(t[:i])], children[tuple(t[:i])].index(t[i])) for i in range(len(t))])
            for t in self.sequences
        ]

    def logits(self, generator: torch.Generator) -> Tensor:
        return torch.randn(self.allowed.shape, dtype=torch.float64, generator=generator)

    def logprobs(self, logits: Tensor) -> list[Tensor]:
        """Return the log-probs of the tokens of every text."""
        table = torch.log_softmax(logits.masked_fill(~self.allowed, -math.inf), dim=-1)
        return [table[index[:, 0], index[:, 1]] for index in self.indices]

    def vocabulary(self) -> list[str]:
        """Return every token that occurs."""
        return sorted({token for tokens in self.sequences for token in tokens})

    def following(self, logits: Tensor, beginning: tuple[str, ...]) -> Tensor:
        """Return log-probs over the vocabulary after a run of tokens; of nothing after a whole text."""
        whole = logits.new_full((len(self.vocabulary()),), -math.inf)
        if beginning in self.children:
            state = list(self.children).index(beginning)
            row = torch.log_softmax(logits.masked_fill(~self.allowed, -math.inf), dim=-1)[state]
            for i, token in enumerate(self.children[beginning]):
                whole[self.vocabulary().index(token)] = row[i]
        return whole


class Texts:
    """A student and a teacher over the same texts."""

    def __init__(self, student_merges: tuple[str, ...], teacher_merges: tuple[str, ...], seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.student, teacher = Policy(student_merges), Policy(teacher_merges)
        self.logits = self.student.logits(generator).requires_grad_()
        teacher_logits = teacher.logits(generator)
        self.teacher_logprobs = teacher.logprobs(teacher_logits)
        self._teacher_merges = teacher_merges
        ours, theirs = ([token.encode() for token in policy.vocabulary()] for policy in (self.student, teacher))
        self._sums = PrefixProbabilities(TokenBytes(ours), TokenBytes(theirs))
        self.prefix_distributions: list[Tensor] = []
        self.prefix_token_scores = [
            self._prefix_token_scores(text, own, teacher, teacher_logits)
            for text, own in zip(TEXTS, self.student.sequences, strict=True)
        ]
        self.alignments: list[Alignment] = [
            align(spans_of(ours), spans_of(theirs))
            for ours, theirs in zip(self.student.sequences, teacher.sequences, strict=True)
        ]

    def _prefix_token_scores(self, text: str, own: list[str], teacher: Policy, logits: Tensor) -> Tensor:
        """Score one text by the tree of its beginnings' tokenisations."""
        nodes: dict[tuple[str, ...], int] = {(): 0}
        beginnings = [tuple(tokens_of(text[:length], self._teacher_merges)) for length in range(len(text) + 1)]
        for beginning in beginnings:
            nodes.setdefault(beginning, len(nodes))
        assert all(beginning[:-1] in nodes for beginning in beginnings)
        table = torch.stack([teacher.following(logits, beginning) for beginning in nodes])
        before = [0.0] * len(nodes)
        for beginning, node in nodes.items():
            if beginning:
                parent = nodes[beginning[:-1]]
                before[node] = before[parent] + float(table[parent, teacher.vocabulary().index(beginning[-1])])
        ends = [nodes[beginning] for beginning in beginnings]
        segment = TextSegment(text.encode(), spans_of(own), [True] * len(own), [True] * len(own), 0, ends, None)
        ids = [self.student.vocabulary().index(token) for token in own]
        reply = Reply(ids, [segment], [], before, rows_of(table))
        token_scores = prefix_scores(reply, self._sums)
        assert token_scores.is_scored.all()
        self.prefix_distributions.append(PrefixDistributions(self._sums)(reply, token_scores))
        return token_scores.logprobs

    def exact_gradient(self) -> Tensor:
        """Return the gradient of −KL(π ‖ T) over texts by automatic differentiation."""
        student = torch.stack([x.sum() for x in self.student.logprobs(self.logits)])
        teacher = torch.stack([x.sum() for x in self.teacher_logprobs])
        return torch.autograd.grad((student.exp() * (teacher - student)).sum(), self.logits)[0]

    def gradient(self, credit: AlignedCredit | PrefixCredit, estimator: AdvantageEstimator) -> Tensor:
        """Return the expected policy gradient E_y Σ_i Â_i ∇log π(a_i|s_i)."""
        total = self.logits.new_zeros(())
        for own, theirs, token_scores, alignment in zip(
            self.student.logprobs(self.logits),
            self.teacher_logprobs,
            self.prefix_token_scores,
            self.alignments,
            strict=True,
        ):
            compared, is_aligned = (
                credit(own.detach(), theirs, alignment)
                if isinstance(credit, AlignedCredit)
                else (token_scores, torch.ones_like(own, dtype=torch.bool))
            )
            log_ratio = torch.where(is_aligned, compared - own.detach(), 0.0)
            advantages = torch.where(is_aligned, estimator(log_ratio[None], is_aligned[None])[0], 0.0)
            total = total + own.detach().sum().exp() * (advantages * own).sum()
        return torch.autograd.grad(total, self.logits)[0]

    def fixed_point(
        self, credit: AlignedCredit | PrefixCredit, estimator: AdvantageEstimator, num_steps: int = 150
    ) -> float:
        """Follow the expected gradient to its end; return the total variation from the teacher's texts."""
        self.logits = self.logits.detach().clone().requires_grad_()
        optimizer = torch.optim.Adam([self.logits], lr=0.1)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_steps)
        for _ in range(num_steps):
            self.logits.grad = -self.gradient(credit, estimator)
            optimizer.step()
            schedule.step()
        student = torch.stack([x.sum() for x in self.student.logprobs(self.logits.detach())]).exp()
        teacher = torch.stack([x.sum() for x in self.teacher_logprobs]).exp()
        return float((student - teacher).abs().sum() / 2)
