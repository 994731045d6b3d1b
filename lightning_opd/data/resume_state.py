"""A rollout batch in a checkpoint: tensors and plain values only."""

from __future__ import annotations

import dataclasses
from typing import Any

from lightning_opd.types import RolloutBatch, TeacherScores


def as_mapping(batch: RolloutBatch) -> dict[str, Any]:
    """Return a micro-batch's fields."""
    state = {f.name: getattr(batch, f.name) for f in dataclasses.fields(batch)}
    scores = batch.teacher_scores
    state["teacher_scores"] = (
        None if scores is None else {f.name: getattr(scores, f.name) for f in dataclasses.fields(scores)}
    )
    return state


def from_mapping(state: dict[str, Any]) -> RolloutBatch:
    """Return the micro-batch that `as_mapping` took apart."""
    scores = state["teacher_scores"]
    return RolloutBatch(**{**state, "teacher_scores": None if scores is None else TeacherScores(**scores)})
