"""Compares student and teacher at every position, one chunk of logits at a time."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from jaxtyping import Bool, Float
from torch import Tensor

from lightning_opd.errors import ConfigError
from lightning_opd.functional.divergences import linear_divergence
from lightning_opd.functional.logprobs import positions_per_chunk
from lightning_opd.interfaces import StudentForward
from lightning_opd.types import RolloutBatch


def against_each_teacher(
    compare: Callable[[int, Tensor, Tensor], Tensor],
    batch: RolloutBatch,
    student: StudentForward,
    mask: Bool[Tensor, "batch time"],
) -> Float[Tensor, "batch time *more"]:
    """Compare the student's logits with those of each row's own teacher where `mask` holds; 0 elsewhere.

    Args:
        compare: From (teacher index, student logits, teacher logits), each `[positions, vocab]` and
            divided by its temperature, to one number (or several) per position.
        batch: Rows with the teachers' hidden states and heads.
        student: The student's states and head.
        mask: Positions to compare.

    Raises:
        ValueError: A teacher returned no hidden states, or has no head.
    """
    scores = batch.teacher_scores
    if scores is None or scores.hidden_states is None:
        msg = (
            "The objective needs the teachers' hidden states, got log-probs only. Use local teachers, or the objective "
            "`PolicyGradient` with an estimator that reads sampled tokens only (`Immediate`)."
        )
        raise ConfigError(msg)
    total = student.hidden_states.new_zeros(())
    for index, head in enumerate(scores.heads or (None,)):
        if head is None:
            msg = f"Teacher `{batch.teacher_names[index]}` has no output head; use the objective `PolicyGradient`."
            raise ConfigError(msg)
        # one vocabulary for both sides, cut before any softmax
        vocab_size = min(head.vocab_size, student.head.vocab_size)
        width = scores.hidden_states.shape[-1] if head.weight is None else head.weight.shape[1]
        total = total + linear_divergence(
            partial(compare, index),
            student.hidden_states,
            student.head.cut(vocab_size).logits,
            scores.hidden_states[..., :width],
            head.cut(vocab_size).logits,
            mask & (batch.teacher_ids == index)[:, None],
            batch.temperature,
            head.temperature or batch.temperature,
            chunk_size=positions_per_chunk(vocab_size, student.hidden_states.device, student.hidden_states.dtype),
        )
    return total
