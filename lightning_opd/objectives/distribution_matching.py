"""Distribution matching: the student's next-token distribution against the teacher's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from typing_extensions import override

from lightning_opd.errors import ConfigError, ConfigTypeError
from lightning_opd.functional.divergences import Divergence, ReverseKL
from lightning_opd.functional.off_policy import OffPolicyWeight
from lightning_opd.functional.policy_losses import PolicyLoss, Reinforce
from lightning_opd.functional.reductions import Reduction, TokenMean
from lightning_opd.functional.top_k import TopK
from lightning_opd.interfaces import Objective, PrepareContext, StudentForward
from lightning_opd.objectives.forecast import forecast, foresee_policy_loss
from lightning_opd.objectives.importance import check_sampling, weighted
from lightning_opd.objectives.metrics import mean_over, per_teacher
from lightning_opd.objectives.teacher_heads import teacher_positions
from lightning_opd.types import LossTerms, RolloutBatch, RunSettings, Signal


@dataclass(frozen=True)
class DistributionMatching(Objective):
    """Match distributions at every token the student visits: Σ_t D(π(·|s_t), T(·|s_t)).

    With the reverse KL this is what the immediate policy gradient estimates, at a fraction of its
    variance (`.github/THEORY.md`, section 3); prefer it with local teachers, whose output head is at hand.
    The state distribution is held fixed, as in the immediate estimator: a nucleus (or any other
    setting of `Sampling` that leaves tokens out) changes which states are visited, not what is matched
    there. Logits exist only one chunk at a time.

    Args:
        divergence: Compares the two distributions.
        reduction: Adds the tokens up.
        teacher_signal: What the teacher returns: "hidden_states" (the whole distribution, at
            the size of one state per token) or "top_k" (its likeliest tokens, as a server returns
            them; needs `TopK` with teacher support).
        policy_loss: Turns outcome advantages, if a callback adds any, into a loss.
        off_policy: Weight, in the outcome gradient, of tokens that another policy sampled (a nucleus, another
            engine); what is matched at a visited state does not depend on who sampled there.

    Reference:
        Agarwal et al., On-policy distillation of language models: learning from self-generated mistakes (GKD),
        arXiv 2306.13649 (2024).
    """

    divergence: Divergence = ReverseKL()
    reduction: Reduction = TokenMean()
    teacher_signal: Literal["hidden_states", "top_k"] = "hidden_states"
    policy_loss: PolicyLoss = Reinforce()
    off_policy: OffPolicyWeight | None = None

    def __post_init__(self) -> None:
        """Refuse anything but a divergence, and one that the teacher's signal cannot serve."""
        given: object = self.divergence
        if not isinstance(given, Divergence):
            msg = (
                f"`divergence` must be a Divergence, got {given!r}. The log-ratio log π − log T of the "
                "sampled token, differentiated as a loss (k1), has an expected gradient of zero. Use `ReverseKL`, or "
                "`PolicyGradient`, in which the log-ratio is a factor of the gradient."
            )
            raise ConfigTypeError(msg)
        if self.teacher_signal == "top_k" and not (
            isinstance(self.divergence, TopK) and self.divergence.support == "teacher"
        ):
            msg = (
                f"With `teacher_signal: top_k` only the teacher's own top tokens are known, got {self.divergence}. "
                "Use `divergence: TopK` with `support: teacher`, or `teacher_signal: hidden_states`."
            )
            raise ConfigError(msg)

    @property
    @override
    def signals(self) -> frozenset[Signal]:
        return frozenset({Signal.TOP_LOGPROBS if self.teacher_signal == "top_k" else Signal.HIDDEN_STATES})

    @override
    def check(self, settings: RunSettings) -> None:
        super().check(settings)
        if not settings.teacher_names:
            msg = (
                "DistributionMatching learns from teachers, but there is none. Name them under `model.teachers`, or "
                "use `OutcomeGradient` to learn from outcome rewards alone."
            )
            raise ConfigError(msg)
        if settings.has_outcome and settings.updates_per_batch > 1 and not self.policy_loss.is_off_policy:
            msg = (
                f"`updates_per_batch` is {settings.updates_per_batch} and outcome rewards are on: their policy "
                f"gradient is stale from the second update on, which {type(self.policy_loss).__name__} does not "
                "correct. Use `policy_loss: PPOClip`, or one update per rollout batch."
            )
            raise ConfigError(msg)
        if settings.has_outcome:
            check_sampling(settings, self.off_policy, "the gradient of the outcome rewards")
        if settings.has_outcome and settings.off_policy_fraction > 0:
            msg = (
                "Outcome rewards teach through the student's own tokens, but a fraction of the rollout batches is "
                "off-policy. Remove `data.off_policy_responses`, or the callback `OutcomeReward`."
            )
            raise ConfigError(msg)

    @override
    def prepare(self, rollouts: RolloutBatch, context: PrepareContext) -> None:
        has_outcome = context.sum_over_ranks(rollouts.outcome_advantages.abs().sum())  # the same on every rank
        if bool(has_outcome > 0):
            super().prepare(rollouts, context)

    @override
    def advantages(self, batch: RolloutBatch, student: StudentForward) -> Float[Tensor, "batch time"]:
        return torch.where(batch.response_mask, batch.outcome_advantages[:, None], 0.0)

    @override
    def loss(
        self,
        batch: RolloutBatch,
        student: StudentForward,
        advantages: Float[Tensor, "batch time"] | None = None,
    ) -> LossTerms:
        if advantages is None:
            advantages = self.advantages(batch, student)
        mask = batch.response_mask & batch.aligned_mask
        has_outcome = self.off_policy is not None or bool(advantages.any())  # with weights, every rank logs them
        if has_outcome:
            known = advantages
            foresee_policy_loss(student, batch, lambda _: known, self.policy_loss, self.off_policy, self.reduction)
        divergences, measured = self._divergences(batch, student, mask, has_outcome=has_outcome)
        losses = torch.where(mask & batch.distill_mask, divergences * batch.distill_weights[:, None], 0.0)
        weights: dict[str, tuple[Tensor, Tensor]] = {}
        if has_outcome:
            outcome = self.policy_loss(student.logprobs, student.old_logprobs, advantages)
            outcome, weights = weighted(outcome, self.off_policy, batch, student)
            losses = losses + outcome
        loss = self.reduction(losses, batch.response_mask, batch.num_active_tokens, batch.num_trajectories)
        return LossTerms(
            loss,
            {
                **per_teacher("teacher_kl", divergences, mask, batch),
                "advantage": mean_over(advantages, batch.response_mask),
                **measured,
                **weights,
            },
        )

    def _divergences(
        self, batch: RolloutBatch, student: StudentForward, mask: Bool[Tensor, "batch time"], *, has_outcome: bool
    ) -> tuple[Float[Tensor, "batch time"], dict[str, tuple[Tensor, Tensor]]]:
        """Return the divergence where `mask` holds, and what to log; log-probs come with it if there is an outcome."""
        weights = batch.distill_weights[:, None].expand(mask.shape)
        weights_ahead = forecast(self.reduction, weights, mask & batch.distill_mask, batch)
        if self.teacher_signal == "top_k":
            return self._served_divergences(batch, student, mask, weights_ahead, has_outcome=has_outcome), {}
        where = teacher_positions(batch, student, mask)
        own = None if weights_ahead is None else where.take(weights_ahead)
        tokens = student.tokens(where.rows, where.columns) if has_outcome else None
        found = self.divergence.from_states(where.student, where.teachers, own, tokens)
        student.take(where.rows, where.columns, found.logprobs)
        measured = where.spread(found.metrics, mask)
        names = self.divergence.metric_names
        return where.spread(found.values, mask), {
            name: mean_over(measured[..., i], mask) for i, name in enumerate(names)
        }

    def _served_divergences(
        self,
        batch: RolloutBatch,
        student: StudentForward,
        mask: Bool[Tensor, "batch time"],
        weights: Float[Tensor, "batch time"] | None,
        *,
        has_outcome: bool,
    ) -> Float[Tensor, "batch time"]:
        """Return the divergence from teachers that answer with their likeliest tokens only."""
        assert isinstance(self.divergence, TopK)
        k, scores = self.divergence.k, batch.teacher_scores
        if scores is None or scores.top_ids is None or scores.top_logprobs is None:
            msg = "The teachers returned no top-k log-probs. Use a teacher that returns them, or hidden states."
            raise ConfigError(msg)
        if scores.top_ids.shape[-1] < k:
            msg = f"`TopK` needs {k} tokens, the teachers return {scores.top_ids.shape[-1]}. Raise their `top_k`."
            raise ConfigError(msg)
        rows, columns = where = mask.nonzero(as_tuple=True)
        found = self.divergence.from_top_k(
            student.at(rows, columns),
            scores.top_ids[where][:, :k],
            scores.top_logprobs[where][:, :k],
            None if weights is None else weights[where],
            student.tokens(rows, columns) if has_outcome else None,
        )
        student.take(rows, columns, found.logprobs)
        return found.values.new_zeros(mask.shape).index_put(where, found.values)
