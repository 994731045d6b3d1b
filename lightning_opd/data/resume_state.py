"""A rollout batch in a checkpoint: tensors and plain values only."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from lightning.fabric.utilities import move_data_to_device

from lightning_opd.errors import ConfigError
from lightning_opd.types import LinearHead, ResponseStates, RolloutBatch, TeacherScores


def as_mapping(batch: RolloutBatch) -> dict[str, Any]:
    """Return a micro-batch's fields on the CPU, without its texts, its metrics, and the teachers' weights."""
    own = dataclasses.replace(batch, trajectories=(), metrics={})
    state = {f.name: getattr(own, f.name) for f in dataclasses.fields(own)}
    scores = batch.teacher_scores
    if scores is not None:
        state["teacher_scores"] = {f.name: getattr(scores, f.name) for f in dataclasses.fields(scores)}
        state["teacher_scores"]["heads"] = ()
        if scores.hidden_states is not None:
            own_states = scores.hidden_states.compact()  # the other micro-batches' stay out
            state["teacher_scores"]["hidden_states"] = {"values": own_states.values, "index": own_states.index}
    moved: dict[str, Any] = move_data_to_device(state, "cpu")
    return moved


def from_mapping(state: dict[str, Any], device: torch.device) -> RolloutBatch:
    """Return the micro-batch that `as_mapping` took apart; `with_heads` completes it once the teachers are loaded."""
    state = move_data_to_device(state, device)
    scores = state["teacher_scores"]
    if scores is not None and scores["hidden_states"] is not None:
        scores = {**scores, "hidden_states": ResponseStates(**scores["hidden_states"])}
    return RolloutBatch(**{**state, "teacher_scores": None if scores is None else TeacherScores(**scores)})


def check_place(saved: tuple[int, int], expected: tuple[int, int]) -> None:
    """Refuse a rollout batch that was saved with other micro-batches or processes than this run has.

    Args:
        saved: Micro-batches of a rollout batch, and processes, when the checkpoint was made.
        expected: The same of this run.

    Raises:
        ConfigError: With both, and what to set.
    """
    if saved != expected:
        msg = (
            f"the checkpoint was saved inside a rollout batch of {saved[0]} micro-batches on {saved[1]} processes, and "
            f"this run has {expected[0]} on {expected[1]}. Set `trainer.devices`, `trainer.accumulate_grad_batches` "
            "and `data.updates_per_batch` as they were, or go on from a checkpoint between two rollout batches."
        )
        raise ConfigError(msg)


def with_heads(batch: RolloutBatch, heads: tuple[LinearHead | None, ...]) -> RolloutBatch:
    """Return a restored micro-batch with the teachers' output layers beside their states."""
    scores = batch.teacher_scores
    if scores is None or scores.hidden_states is None:
        return batch
    return dataclasses.replace(batch, teacher_scores=dataclasses.replace(scores, heads=heads))
