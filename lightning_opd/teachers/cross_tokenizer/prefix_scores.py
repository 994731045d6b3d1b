"""Scores by the probability of the student's text, from a teacher that reads all beginnings of it at once."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_opd.errors import ConfigError
from lightning_opd.functional.logprobs import MAX_CHUNK_ELEMENTS, log_softmax
from lightning_opd.interfaces import ReadsTrees, Teacher
from lightning_opd.teachers.cross_tokenizer.prefix_tree import PrefixTree, pack, prefix_tree
from lightning_opd.teachers.cross_tokenizer.prefixes import PrefixScorer, Reply
from lightning_opd.teachers.cross_tokenizer.translation import Translator
from lightning_opd.types import LinearHead, SampledTokens, TeacherScores, Trajectory, Turn

IMPOSSIBLE = -1e3
"""Stands in nats for a token to which the teacher gives no probability at all: bad, yet known."""


@torch.no_grad()
def prefix_scores(
    batch: SampledTokens, translator: Translator, scorer: Teacher, prefix_scorer: PrefixScorer, top_k: int = 0
) -> TeacherScores:
    """Score a batch by the credit `PrefixCredit`, reply by reply.

    Args:
        batch: Rollouts with their trajectories.
        translator: From the student's tokens to the teacher's.
        scorer: Reads trees of its own tokens.
        prefix_scorer: Of both vocabularies.
        top_k: Likeliest tokens of the student per position to report, if any.

    Raises:
        ValueError: The scorer has no states and no output layer to give.
    """
    if not isinstance(scorer, ReadsTrees):
        msg = (
            f"The credit `PrefixCredit` takes whole distributions, and {type(scorer).__name__} has none to give. Use a "
            "teacher in this process, or the credit `SpanCredit` or `ExactMatchCredit`."
        )
        raise ConfigError(msg)
    ids = batch.token_ids
    replies = [
        (row, columns, translator.prompt(turn.messages), prefix_tree(translator, ids[row, columns].tolist()))
        for row, trajectory in enumerate(batch.trajectories)
        for turn, columns in replies_of(trajectory, batch.response_mask[row].nonzero().squeeze(-1))
    ]
    packed = pack([prompt for _, _, prompt, _ in replies], [tree for *_, tree in replies], ids.device)
    states, head = scorer.tree_hidden_states(*packed), scorer.output_head()
    assert head is not None  # it read a tree
    logprobs = torch.zeros_like(batch.rollout_logprobs)
    aligned_mask = torch.zeros_like(batch.response_mask)
    top_ids = top_logprobs = None
    if top_k:
        size = (*ids.shape, min(top_k, len(translator.student)))
        top_ids, top_logprobs = ids.new_zeros(size), logprobs.new_full(size, -torch.inf)
    for of_row, (row, columns, prompt, tree) in zip(states, replies, strict=True):
        table = _Table(
            of_row[len(prompt) - 1 : len(prompt) - 1 + len(tree.token_ids)],
            head,
            head.temperature or batch.temperature,
            prefix_scorer,
        )
        student_ids = ids[row, columns].tolist()
        reply = Reply(student_ids, tree.segments, tree.controls, table.before(tree), table.probabilities)
        token_scores = prefix_scorer.score(reply)
        logprobs[row, columns] = token_scores.logprobs.to(logprobs.dtype)
        aligned_mask[row, columns] = token_scores.is_scored
        if top_ids is not None and top_logprobs is not None:
            step = max(1, MAX_CHUNK_ELEMENTS // len(prefix_scorer.student.order))
            for first in range(0, len(student_ids), step):
                part = range(first, min(first + step, len(student_ids)))
                top = prefix_scorer.distributions(reply, token_scores, part).topk(top_ids.shape[-1])
                top_ids[row, columns[part.start : part.stop]] = top.indices
                top_logprobs[row, columns[part.start : part.stop]] = top.values.log().to(top_logprobs.dtype)
    return TeacherScores(logprobs, aligned_mask, top_ids, top_logprobs)


def replies_of(trajectory: Trajectory, columns: Tensor) -> list[tuple[Turn, Tensor]]:
    """Return each reply of an episode with the columns of its tokens, given those of the student's tokens."""
    turns = trajectory.turns or (Turn(trajectory.prompt.messages, 0, len(columns), trajectory.text),)
    lengths = [turn.end - turn.start for turn in turns]
    return list(zip(turns, torch.split(columns, lengths), strict=True))


class _Table:
    """What the teacher says at the nodes of one tree, computed for a range of nodes at a time."""

    def __init__(
        self, states: Float[Tensor, "nodes hidden"], head: LinearHead, temperature: float, prefix_scorer: PrefixScorer
    ) -> None:
        self._states, self._head, self._temperature, self._prefix_scorer = states, head, temperature, prefix_scorer
        self._last: tuple[range, Tensor] | None = None

    def _logprobs(self, nodes: range) -> Float[Tensor, "nodes vocab"]:
        return log_softmax(self._head.logits(self._states[nodes.start : nodes.stop]), self._temperature)

    def probabilities(self, nodes: range) -> Float[Tensor, "nodes vocab"]:
        """Return what `Reply` asks for; the last answer is kept."""
        if self._last is None or self._last[0] != nodes:
            self._last = nodes, self._prefix_scorer.sort(self._logprobs(nodes))
        return self._last[1]

    def before(self, tree: PrefixTree) -> list[float]:
        """Return the log-prob (nats) of the tokens up to each node; −inf beyond one that the model does not know."""
        device = self._states.device
        parents, ids = (torch.tensor(x[1:], dtype=torch.long, device=device) for x in (tree.parents, tree.token_ids))
        own = torch.full(ids.shape, -torch.inf, dtype=torch.float64, device=device)
        is_known = ids < self._head.vocab_size
        for nodes in self._prefix_scorer.chunks(tree.parents[1:]):
            inside = is_known & (parents >= nodes.start) & (parents < nodes.stop)
            logprobs = self._logprobs(nodes).double()[parents[inside] - nodes.start, ids[inside]]
            own[inside] = logprobs.clamp(min=IMPOSSIBLE)
        before = [0.0]
        for parent, logprob in zip(tree.parents[1:], own.tolist(), strict=True):
            before.append(before[parent] + logprob)
        return before
