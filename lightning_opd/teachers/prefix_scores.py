"""Grades by the probability of the student's text, from a teacher that reads all beginnings of it at once."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_opd.functional.logprobs import log_softmax
from lightning_opd.functional.prefixes import PrefixGrader, Reply
from lightning_opd.interfaces import Teacher
from lightning_opd.tokenization.prefix_tree import PrefixTree, pack, prefix_tree
from lightning_opd.tokenization.translation import Translator
from lightning_opd.types import RolloutBatch, TeacherScores, Trajectory, Turn


@torch.no_grad()
def prefix_scores(
    batch: RolloutBatch, translator: Translator, scorer: Teacher, grader: PrefixGrader, top_k: int = 0
) -> TeacherScores:
    """Grade a batch by the credit `Prefix`, reply by reply.

    Args:
        batch: Rollouts with their trajectories.
        translator: From the student's tokens to the teacher's.
        scorer: Reads trees of its own tokens.
        grader: Of both vocabularies.
        top_k: Likeliest tokens of the student per position to report, if any.

    Raises:
        ValueError: The scorer has no states and no output layer to give.
    """
    replies = [
        (
            row,
            columns,
            translator.prompt(turn.messages),
            prefix_tree(translator, batch.token_ids[row, columns].tolist()),
        )
        for row, trajectory in enumerate(batch.trajectories)
        for turn, columns in replies_of(trajectory, batch.response_mask[row].nonzero().squeeze(-1))
        for ids in (batch.token_ids[row, columns],)
    ]
    packed = pack([prompt for _, _, prompt, _ in replies], [tree for *_, tree in replies], batch.token_ids.device)
    states, head = scorer.tree_states(*packed), scorer.output_head()
    if head is None or states is None:
        msg = (
            f"The credit `Prefix` takes whole distributions, and {type(scorer).__name__} has none to give. Use a "
            "teacher in this process, or the credit `Span` or `Strict`."
        )
        raise ValueError(msg)
    logprobs = torch.zeros_like(batch.rollout_logprobs)
    comparable_mask = torch.zeros_like(batch.response_mask)
    top_ids = top_logprobs = None
    if top_k:
        size = (*batch.token_ids.shape, min(top_k, len(translator.student)))
        top_ids, top_logprobs = batch.token_ids.new_zeros(size), logprobs.new_full(size, -torch.inf)
    for of_row, (row, columns, prompt, tree) in zip(states, replies, strict=True):
        nodes = of_row[len(prompt) - 1 : len(prompt) - 1 + len(tree.token_ids)]
        table = log_softmax(head.logits(nodes), head.temperature or batch.temperature)
        ids, before = batch.token_ids[row, columns].tolist(), _log_probs_of_nodes(tree, table)
        reply = Reply(ids, tree.stretches, tree.controls, before, grader.sort(table))
        grades = grader.grade(reply)
        logprobs[row, columns] = grades.logprobs.to(logprobs.dtype)
        comparable_mask[row, columns] = grades.is_graded
        if top_ids is not None and top_logprobs is not None:
            top = grader.distributions(reply, grades).topk(top_ids.shape[-1])
            top_ids[row, columns] = top.indices
            top_logprobs[row, columns] = top.values.log().to(top_logprobs.dtype)
    return TeacherScores(logprobs, comparable_mask, top_ids, top_logprobs)


def replies_of(trajectory: Trajectory, columns: Tensor) -> list[tuple[Turn, Tensor]]:
    """Return each reply of an episode with the columns of its tokens, given those of the student's tokens."""
    turns = trajectory.turns or (Turn(trajectory.prompt.messages, 0, len(columns), trajectory.text),)
    lengths = [turn.end - turn.start for turn in turns]
    return list(zip(turns, torch.split(columns, lengths), strict=True))


def _log_probs_of_nodes(tree: PrefixTree, table: Tensor) -> list[float]:
    """Return the log-prob (nats) of the tokens up to each node; −inf beyond a token that the model does not know."""
    parents, ids = torch.tensor(tree.parents[1:]), torch.tensor(tree.token_ids[1:])
    is_known = ids < table.shape[1]
    own = table.double().cpu()[parents, ids.clamp(max=table.shape[1] - 1)].where(is_known, -torch.inf)
    before = [0.0]
    for parent, logprob in zip(tree.parents[1:], own.tolist(), strict=True):
        before.append(before[parent] + logprob)
    return before
