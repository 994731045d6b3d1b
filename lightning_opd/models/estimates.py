"""Memory and time of a run on paper: bytes per device by part, the largest batch that fits, and seconds per step."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from lightning_opd.models.shapes import ModelShape, RunShape

LOGIT_COPIES = 3
"""Arrays of one chunk of logits that exist at once: the student's, the teacher's, and one to work in."""

GATHERED_LAYERS = 2
"""Layers that FSDP2 gathers at once: the one that computes, and the next one."""


@dataclass(frozen=True)
class Estimate:
    """Bytes on one device by part.

    Args:
        resident: What is there all the time.
        stages: What each stage of a step adds to it, in bytes by part.
    """

    resident: Mapping[str, int]
    stages: Mapping[str, Mapping[str, int]]

    @cached_property
    def peaks(self) -> dict[str, int]:
        """Bytes of each stage, resident ones included."""
        always = sum(self.resident.values())
        return {name: always + sum(parts.values()) for name, parts in self.stages.items()}

    @property
    def peak(self) -> int:
        """Bytes of the largest stage."""
        return max(self.peaks.values())


def estimate(run: RunShape) -> Estimate:
    """Return what a run takes on each of its devices, in bytes.

    Example:
        >>> shape = ModelShape(1000, 10, 4, 2, 2, 1, 2, 8)
        >>> found = estimate(RunShape(shape, (shape,), 1000, 8, 8, 4, 2))
        >>> found.resident["student: weights"], found.resident["student: optimiser states"]
        (4000, 8000)
    """
    states = _state_bytes(run)
    stages = {
        "rollout": _rollout(run),
        "score": {**_score(run), "teacher states": states},
        "update": {**_update(run), "teacher states": states},
    }
    if run.is_sharded and not run.loads_in_slices:
        stages = {"load": _whole(run), **stages}
    return Estimate(_resident(run), stages)


def _resident(run: RunShape) -> dict[str, int]:
    student, shards = run.student, run.num_shards
    width = max(4, student.bytes_per_weight) if run.num_trained < student.num_weights else student.bytes_per_weight
    adapter = run.num_trained * width if run.num_trained < student.num_weights else 0
    sizes = [teacher.weight_bytes // shards for teacher in run.teachers]
    parts = {
        "student: weights": (student.weight_bytes + adapter) // shards,
        "student: gradients": run.num_trained * width // shards,
        "student: optimiser states": 2 * run.num_trained * width // shards,
        "teachers: weights": 0 if run.teachers_in_turn else sum(sizes),
    }
    has_copies = run.keeps_states and (run.is_sharded or run.teachers_in_turn)
    heads = sum(teacher.head_weights for teacher in run.teachers) * run.gathered_bytes
    return {**parts, "teachers: copied heads": heads if has_copies else 0}


def _state_bytes(run: RunShape) -> int:
    """Return the bytes of the states that a rollout batch keeps until its last update."""
    if not run.keeps_states:
        return 0
    tokens = run.response_tokens if run.keeps_response_states_only else run.max_tokens
    return run.rollout_rows * tokens * max((t.hidden_size for t in run.teachers), default=0) * run.forward_bytes


def _whole(run: RunShape) -> dict[str, int]:
    """Return what the largest model takes that is moved to the device before it is sharded."""
    return {"a whole model": max(model.weight_bytes for model in (run.student, *run.teachers))}


def _casts(run: RunShape) -> bool:
    """Return whether autocast makes a second copy of each weight that it computes with."""
    gathers = run.is_sharded and run.gathers_in_forward_precision
    return not gathers and run.forward_bytes < run.student.bytes_per_weight


def _gathered(run: RunShape, model: ModelShape, num_layers: int, *, num_cast: int = 1) -> int:
    """Return the bytes of the gathered layers, of autocast's copies of cast ones, and of the head in both.

    Lightning's autocast keeps no copies for later: each lives while its layer computes, and until the backward pass
    where autograd saves it.
    """

    def size(layers: int) -> int:
        return model.num_weights - model.layer_weights * (model.num_layers - layers)

    is_cast = _casts(run) and model.bytes_per_weight > run.forward_bytes
    copies = size(num_cast) * run.forward_bytes if is_cast else 0
    if not run.is_sharded:
        return copies
    width = run.forward_bytes if run.gathers_in_forward_precision else model.bytes_per_weight
    return size(num_layers) * width + copies


def _rollout(run: RunShape) -> dict[str, int]:
    student, rows = run.student, min(run.generated_rows, run.rollout_rows)
    cache = rows * run.max_tokens * student.cache_bytes(run.forward_bytes)
    return {
        "gathered weights": _gathered(run, student, student.num_layers),
        "keys and values": cache + cache // student.num_layers,  # one layer's are copied to grow
        "logits": rows * student.vocab_size * 4 * LOGIT_COPIES,
        "prepacked weights": student.weight_bytes if run.prepacks else 0,
    }


def _score(run: RunShape) -> dict[str, int]:
    tokens = min(run.scored_rows, run.rollout_rows) * run.max_tokens
    largest = max((teacher.weight_bytes // run.num_shards for teacher in run.teachers), default=0)
    return {
        "one teacher": largest if run.teachers_in_turn else 0,
        "gathered weights": max((_gathered(run, t, GATHERED_LAYERS) for t in run.teachers), default=0),
        "activations": tokens * max((t.passing_bytes(run.forward_bytes) for t in run.teachers), default=0),
        "logits": _logits(run, min(run.scored_rows, run.rollout_rows)),
    }


def _update(run: RunShape) -> dict[str, int]:
    student, tokens = run.student, run.micro_rows * run.max_tokens
    layer = tokens * student.kept_bytes(run.forward_bytes, has_autocast=_casts(run))
    kept = tokens * student.hidden_size * run.forward_bytes * student.num_layers
    is_full = run.num_trained == student.num_weights
    gradients = student.head_weights + GATHERED_LAYERS * student.layer_weights if is_full and run.is_sharded else 0
    num_cast = 1 if run.gradient_checkpointing else student.num_layers
    return {
        "gathered weights": _gathered(run, student, GATHERED_LAYERS, num_cast=num_cast),
        "gathered gradients": gradients * run.gathered_bytes,
        "activations": kept + layer if run.gradient_checkpointing else layer * student.num_layers,
        "logits": _logits(run, run.micro_rows),
    }


def _logits(run: RunShape, num_rows: int) -> int:
    return LOGIT_COPIES * min(run.logits_bytes, num_rows * run.response_tokens * run.student.vocab_size * 4)


def largest_micro_batch(run: RunShape, available: int) -> int:
    """Return with how many rows in a micro-batch a run fits into so many bytes; 0 if with none."""
    fits = [0]
    rows = 1
    while rows <= run.rollout_rows and estimate(dataclasses.replace(run, micro_rows=rows)).peak <= available:
        fits.append(rows)
        rows += 1
    return fits[-1]


def flops(run: RunShape) -> dict[str, int]:
    """Return the floating-point operations of a step on one device by stage, attention included.

    A forward takes two operations per weight and token, a backward pass twice as many, or as many where the weights
    are frozen; checkpointing adds a forward.
    """
    student, tokens = run.student, run.rollout_rows * run.max_tokens
    own = _forward_flops(student, run.max_tokens)
    backward = 2 if run.num_trained == student.num_weights else 1
    teacher = max((_forward_flops(t, run.max_tokens) for t in run.teachers), default=0)
    return {
        "rollout": tokens * own,
        "score": tokens * teacher,  # each row has one teacher
        "update": tokens * own * (1 + backward + run.gradient_checkpointing),
    }


def _forward_flops(model: ModelShape, num_tokens: int) -> int:
    """Return the operations of a forward for one token of a row of so many."""
    attention = 2 * model.num_layers * model.num_heads * model.head_dim * num_tokens
    return 2 * model.num_weights + attention
