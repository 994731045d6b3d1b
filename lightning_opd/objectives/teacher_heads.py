"""Compares student and teacher at every position, straight from their hidden states."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lightning_opd.errors import ConfigError
from lightning_opd.functional.heads import HeadStates
from lightning_opd.interfaces import StudentForward
from lightning_opd.types import RolloutBatch


@dataclass(frozen=True)
class TeacherPositions:
    """The positions at which the student meets its rows' own teachers, one teacher's after the other's.

    Args:
        rows: Row of each position.
        columns: Column of each position.
        student: The student's states there, with graph, and its head.
        teachers: Every teacher's states at its own positions, and its head.
    """

    rows: Int[Tensor, " positions"]
    columns: Int[Tensor, " positions"]
    student: HeadStates
    teachers: Sequence[HeadStates]

    def take(self, values: Float[Tensor, "batch time"]) -> Float[Tensor, " positions"]:
        """Return the values at these positions, in their order."""
        return values[self.rows, self.columns]

    def spread(
        self, values: Float[Tensor, "positions ..."], mask: Bool[Tensor, "batch time"]
    ) -> Float[Tensor, "batch time ..."]:
        """Return values of these positions in the shape of `mask`, 0 elsewhere; the inverse of `take`."""
        return values.new_zeros(*mask.shape, *values.shape[1:]).index_put((self.rows, self.columns), values)


def teacher_positions(
    batch: RolloutBatch, student: StudentForward, mask: Bool[Tensor, "batch time"]
) -> TeacherPositions:
    """Return student and teachers at the positions where `mask` holds, in the order of `batch.teacher_names`.

    Args:
        batch: Rows with the teachers' hidden states and heads.
        student: The student's states and head.
        mask: Positions to compare; rows without a teacher have none.

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
    heads = []
    for index, head in enumerate(scores.heads or (None,)):
        if head is None:
            msg = f"Teacher `{batch.teacher_names[index]}` has no output head; use the objective `PolicyGradient`."
            raise ConfigError(msg)
        heads.append(head)
    rows, columns = (mask & ((batch.teacher_ids >= 0) & (batch.teacher_ids < len(heads)))[:, None]).nonzero(
        as_tuple=True
    )
    owners = batch.teacher_ids[rows]
    order = owners.argsort(stable=True)
    rows, columns = rows[order], columns[order]
    counts = torch.bincount(owners, minlength=len(heads)).tolist()
    parts = zip(heads, rows.split(counts), columns.split(counts), strict=True)
    teachers = [
        HeadStates(scores.hidden_states.at(index, *where), head, head.temperature or batch.temperature)
        for index, (head, *where) in enumerate(parts)
    ]
    return TeacherPositions(rows, columns, student.at(rows, columns), teachers)
