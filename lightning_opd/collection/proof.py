"""The first rollout batch as a proof that the engine and the training forward are one model."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor

from lightning_opd.collection.learner import Learner
from lightning_opd.errors import ConfigError
from lightning_opd.interfaces import RolloutEngine
from lightning_opd.models import evaluating, gather_objects
from lightning_opd.types import RolloutBatch, Sampling

NUM_ROWS = 4
"""Rows of the first rollout batch that are compared."""

TOLERANCES = {
    torch.float64: (1e-5, 1e-6),
    torch.float32: (1e-2, 1e-3),
    torch.float16: (0.3, 0.03),
    torch.bfloat16: (1.5, 0.1),
}
"""Largest and mean difference in nats that rounding explains, by the precision of the forward."""


@dataclass(frozen=True)
class Gap:
    """How far apart two log-probs of the same tokens are, in nats.

    Args:
        largest: Over all tokens compared.
        mean: Over all tokens compared.
        row: Of the largest, in the rank's rollout batch.
        position: Of the largest, in its row.
        rank: Whose rows these are.
    """

    largest: float = 0.0
    mean: float = 0.0
    row: int = 0
    position: int = 0
    rank: int = 0

    def is_within(self, tolerance: tuple[float, float]) -> bool:
        """Return whether rounding explains it."""
        return self.largest <= tolerance[0] and self.mean <= tolerance[1]


class FirstBatchProof:
    """Compares the engine's log-probs with the training forward's, once, on rows of different length.

    Both are exactly on-policy only if they are equal. Random state and gradients stay as they were.
    """

    def __init__(self) -> None:
        """Begin without a proof."""
        self.is_done = False

    def check(self, rollouts: RolloutBatch, learner: Learner, engine: RolloutEngine, sampling: Sampling) -> None:
        """Compare, on the first call; later ones return at once. Every rank must call it.

        Args:
            rollouts: What the student itself generated.
            learner: Whose training forward to ask.
            engine: Who reported the log-probs; an exact one must agree, of another it is said how far it is off.
            sampling: How the responses were drawn.

        Raises:
            ConfigError: The engine claims to be exact, and differs by more than rounding.
        """
        if self.is_done:
            return
        self.is_done = True
        rows = _rows_of_all_lengths(rollouts)
        dtype = forward_precision(learner, rollouts)
        tolerance = TOLERANCES[dtype]
        name = type(engine).__name__
        gap = _gap(rollouts, rows, learner, sampling)
        model = learner.load_language_model()
        draws_all = sampling.vocab_size is None or sampling.vocab_size >= model.vocab_size
        if not engine.is_exact or not draws_all or sampling.repetition_penalty != 1:
            rank_zero_info(
                f"First rollout batch: {name} and the training forward differ by {gap.mean:.2g} nats a token, at most "
                f"{gap.largest:.2g}."
            )
            return
        if gap.is_within(tolerance):
            return
        with evaluating(model.model):
            in_eval = _gap(rollouts, rows, learner, sampling)
        alone = [_gap(rollouts, rows[i : i + 1], learner, sampling) for i in range(len(rows))]
        msg = (
            f"On the first rollout batch the log-probs of {name} and of the training forward differ by "
            f"{gap.largest:.2g} nats (row {gap.row}, position {gap.position}, process {gap.rank}; {gap.mean:.2g} on "
            f"average; {str(dtype).removeprefix('torch.')} explains {tolerance[0]:g} and {tolerance[1]:g}). "
        )
        raise ConfigError(msg + _reason(in_eval, alone, tolerance))


def _reason(in_eval: Gap, alone: list[Gap], tolerance: tuple[float, float]) -> str:
    """Return why two log-probs differ and what to do, from what makes them agree."""
    if in_eval.is_within(tolerance):
        return (
            "In eval mode they agree: a module of the student acts in training only (dropout, noise). Set it to zero "
            "in `configure_student`, or in the model's configuration."
        )
    if all(gap.is_within(tolerance) for gap in alone):
        return (
            "Row by row they agree: the training forward does not mask the padding on the right. Try "
            "`student.attn_implementation: eager`, or another precision."
        )
    if any(gap.is_within(tolerance) for gap in alone):
        return (
            "Some rows agree and others do not: the engine reads padding on the left of shorter prompts, or its cache "
            "does not reorder this architecture's states. Use an engine that runs this architecture, or "
            "`samples_per_prompt: 1` with prompts of equal length."
        )
    return (
        "No row agrees: the engine's cache does not hold this architecture's states, its mask or attention differs, or "
        "it has other weights. Try `student.attn_implementation: eager`, or an engine that runs this architecture."
    )


def _rows_of_all_lengths(rollouts: RolloutBatch) -> Tensor:
    """Return the rows with the longest and the shortest prompt, and some between."""
    has_response = rollouts.response_mask.any(dim=1)
    prompt_lengths = torch.where(has_response, rollouts.response_mask.int().argmax(dim=1), -1)
    order = prompt_lengths.argsort(stable=True)
    places = torch.linspace(0, len(order) - 1, min(NUM_ROWS, len(order)), device=order.device).round().long()
    return order[places]


def forward_precision(learner: Learner, rollouts: RolloutBatch) -> torch.dtype:
    """Return the precision in which the student computes here."""
    device = rollouts.token_ids.device.type
    if torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    dtype = learner.load_language_model().model.dtype
    if dtype == torch.float32 and device == "cuda" and torch.get_float32_matmul_precision() != "highest":
        return torch.float16  # TensorFloat-32 has its mantissa
    return dtype if dtype in TOLERANCES else torch.bfloat16


@torch.no_grad()
def _gap(rollouts: RolloutBatch, rows: Tensor, learner: Learner, sampling: Sampling) -> Gap:
    """Return the worst gap over all ranks of the given rows, where log-probs of a nucleus may be higher by its mass."""
    part, start = rollouts.select(rows), rollouts.span(rows).start
    devices = [part.token_ids.device] if part.token_ids.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        own = learner.forward_student(part).logprobs.double()
    difference = part.rollout_logprobs.double() - own
    above = (difference - _most_above(sampling)).clamp(min=0)
    excess = torch.where(part.response_mask, torch.maximum(above, -difference), 0.0)
    # log-probs that were sampled with are not finite where weights are not: their update is skipped, and said
    excess = torch.where(excess.isnan(), torch.where(part.rollout_logprobs.isfinite(), torch.inf, 0.0), excess)
    worst = int(excess.argmax())
    row, column = divmod(worst, excess.shape[1])
    mean = float(excess.sum() / part.response_mask.sum().clamp(min=1))
    gap = Gap(float(excess.max()), mean, int(rows[row]), start + column)
    gaps = [Gap(g.largest, g.mean, g.row, g.position, rank) for rank, g in enumerate(gather_objects(gap))]
    largest = max(gaps, key=lambda g: g.largest)
    return Gap(largest.largest, max(g.mean for g in gaps), largest.row, largest.position, largest.rank)


def _most_above(sampling: Sampling) -> float:
    """Return how far (nats) leaving out unlikely tokens may raise the log-probs of the others."""
    if sampling.top_k is not None or sampling.min_p > 0:
        return math.inf
    return -math.log(sampling.top_p)
