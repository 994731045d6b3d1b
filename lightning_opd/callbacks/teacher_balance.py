"""A target fraction of the distillation signal for each teacher."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Literal, TypeAlias

import lightning as L  # Lightning's own convention
import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from lightning_opd.collection.learner import Learner, RolloutProducer
from lightning_opd.collection.prepare import over_rows, prepare
from lightning_opd.errors import ConfigError
from lightning_opd.interfaces import OPDCallback, StudentForward
from lightning_opd.models import evaluating, sum_over_ranks
from lightning_opd.types import RolloutBatch, RunSettings, Signal

Amount: TypeAlias = Literal["tokens", "advantage"]

ROWS_PER_FORWARD = 16
"""Rows of a rollout batch that one forward without a graph takes at once."""


class TeacherBalance(OPDCallback):
    """Give each teacher a target fraction of the distillation signal of every rollout batch.

    Where one domain's answers are ten times as long, its teacher sends ten times as many tokens, and the other
    domain learns last. The rows of each teacher get one common factor on their `distill_weights`, so that its
    fraction of all ranks' signal is the target. Σ (weight × tokens) stays what it was, hence the learning rate keeps
    its meaning; `num_active_tokens` is not touched. No state is kept: equal batches get equal factors. A teacher
    without signal in a batch is left out, and the others divide its fraction in proportion to their own.

    Weights that masks have set before it count, so it belongs after `FormatErrorMask` and the like in
    `trainer.callbacks`. Under a reduction that divides by each sequence's length, long answers do not weigh more:
    there it is not needed.

    Logs for each teacher `train/distill_fraction/<name>` (its fraction after the change),
    `train/distill_fraction_before/<name>`, and `train/balance_factor/<name>`.

    Args:
        target: Teacher's name → fraction, adding up to 1; by default equal ones.
        by: What is balanced: `tokens`, the sum of weight × response tokens with a distillation signal, or
            `advantage`, the sum of |weight × advantage| over them in nats. The latter costs one forward pass of the
            student more per rollout batch, and a factor of it turns up the noise of a teacher that the student
            already equals.
        max_factor: Largest factor of a teacher; its fraction then stays below the target. By default there is none.

    Reference:
        Open-MOPD (arXiv 2608.19098): multi-teacher merging with and without balance; `.github/THEORY.md`, section 6.
    """

    def __init__(
        self, target: Mapping[str, float] | None = None, by: Amount = "tokens", max_factor: float | None = None
    ) -> None:
        """Check the numbers."""
        for name, fraction in (target or {}).items():
            if not 0 < fraction <= 1:
                msg = f"`target` of `{name}` is a fraction above 0 and at most 1, got {fraction}."
                raise ConfigError(msg)
        if target is not None and not math.isclose(sum(target.values()), 1, abs_tol=1e-6):
            msg = f"The fractions of `target` must add up to 1, got {dict(target)}, together {sum(target.values()):g}."
            raise ConfigError(msg)
        if max_factor is not None and not 1 <= max_factor < math.inf:
            msg = f"`max_factor` must be a finite number of at least 1, got {max_factor}. Leave it out for no limit."
            raise ConfigError(msg)
        self.target, self.by, self.max_factor = target, by, max_factor

    @property
    @override
    def signals(self) -> frozenset[Signal]:
        return frozenset({Signal.LOGPROBS}) if self.by == "advantage" else frozenset()

    @override
    def check(self, settings: RunSettings, signals: frozenset[Signal]) -> None:
        if len(settings.teacher_names) < 2:
            msg = (
                f"TeacherBalance balances teachers, got {len(settings.teacher_names)} under `model.teachers`. Remove "
                "the callback, or add a teacher."
            )
            raise ConfigError(msg)
        if self.target is not None and set(self.target) != set(settings.teacher_names):
            msg = (
                f"`target` of TeacherBalance names {sorted(self.target)}, the teachers are "
                f"{list(settings.teacher_names)}. Give each of them a fraction."
            )
            raise ConfigError(msg)
        if self.by == "advantage" and Signal.LOGPROBS not in signals:
            msg = (
                "`by: advantage` of TeacherBalance needs an objective with an advantage per token, and matching whole "
                "distributions has none. Use `by: tokens`, or the objective `PolicyGradient`."
            )
            raise ConfigError(msg)

    @override
    def on_rollout_end(self, trainer: L.Trainer, module: L.LightningModule, rollouts: RolloutBatch) -> None:
        names = rollouts.teacher_names
        tokens = rollouts.response_mask & rollouts.aligned_mask & rollouts.distill_mask
        weighted_tokens = rollouts.distill_weights.double().abs() * tokens.sum(dim=1)
        amounts = weighted_tokens if self.by == "tokens" else self._advantages(trainer, rollouts)
        is_own = torch.stack([rollouts.teacher_ids == index for index in range(len(names))]).double()
        local = is_own @ torch.stack([amounts, weighted_tokens], dim=1)
        over_ranks = sum_over_ranks(local)
        target = over_ranks.new_tensor([(self.target or {}).get(name, 1 / len(names)) for name in names])
        factors = balance_factors(target, over_ranks[:, 0], over_ranks[:, 1], self.max_factor)
        scale = torch.where(rollouts.teacher_ids >= 0, factors[rollouts.teacher_ids.clamp(min=0)], 1.0)
        rollouts.distill_weights = rollouts.distill_weights * scale.to(rollouts.distill_weights.dtype)
        before, after, one = local[:, 0], local[:, 0] * factors, factors.new_ones(())
        metrics = {}
        for index, name in enumerate(names):
            metrics[f"train/distill_fraction_before/{name}"] = (before[index], before.sum())
            metrics[f"train/distill_fraction/{name}"] = (after[index], after.sum())
            metrics[f"train/balance_factor/{name}"] = (factors[index], one)
        rollouts.metrics = {**rollouts.metrics, **metrics}

    def _advantages(self, trainer: L.Trainer, rollouts: RolloutBatch) -> Float[Tensor, " batch"]:
        """Return each row's Σ|weight × advantage| in nats, without the outcome's advantage."""
        producer = trainer.datamodule  # type: ignore[attr-defined]  # set by Lightning at run time
        assert isinstance(producer, RolloutProducer)
        with trainer.precision_plugin.forward_context(), torch.no_grad():
            return absolute_advantages(producer.plan().learner, rollouts)


def absolute_advantages(learner: Learner, rollouts: RolloutBatch) -> Float[Tensor, " batch"]:
    """Return Σ|weight × advantage| of each row's distillation in nats, as the first update will have it.

    Args:
        learner: Whose objective and student to use.
        rollouts: Scored; it is left as it is.
    """
    bare = dataclasses.replace(rollouts, outcome_advantages=torch.zeros_like(rollouts.outcome_advantages))
    prepare(bare, learner, 1 if learner.value is None else 2)  # a critic's values are stored for several updates only

    def advantages(part: RolloutBatch, student: StudentForward) -> Tensor:
        part.kl = learner.objective.state_kl(part, student)
        return learner.objective.advantages(part, student)

    with evaluating(learner.load_language_model().model):
        return over_rows(bare, learner, advantages).double().abs().sum(dim=1)


def balance_factors(
    target: Float[Tensor, " teachers"],
    amounts: Float[Tensor, " teachers"],
    weighted_tokens: Float[Tensor, " teachers"],
    max_factor: float | None = None,
) -> Float[Tensor, " teachers"]:
    """Return each teacher's factor, under which its fraction of Σ factor × amount is the target.

    Σ factor × tokens stays Σ tokens. A teacher without an amount has the factor 1.

    Args:
        target: Fractions.
        amounts: What is balanced, of each teacher.
        weighted_tokens: Σ weight × tokens of each teacher.
        max_factor: Largest factor; those above it are cut, and the others take what that leaves.

    Example:
        >>> lengths = torch.tensor([100.0, 10.0])
        >>> balance_factors(torch.tensor([0.5, 0.5]), lengths, lengths)
        tensor([0.5500, 5.5000])
    """
    is_free = (amounts > 0) & (weighted_tokens > 0)
    factors = torch.ones_like(amounts)
    rates = torch.where(is_free, target / torch.where(is_free, amounts, 1.0), 0.0)
    while bool(is_free.any()):
        left = weighted_tokens.sum() - (factors * weighted_tokens)[~is_free].sum()
        factors = torch.where(is_free, rates * left / (rates * weighted_tokens)[is_free].sum(), factors)
        is_above = is_free & (factors > (math.inf if max_factor is None else max_factor))
        if not bool(is_above.any()):
            break
        factors = torch.where(is_above, max_factor or 1.0, factors)
        is_free = is_free & ~is_above
    return factors
