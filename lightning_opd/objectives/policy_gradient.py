"""Policy gradient on the teacher's log-ratio of the sampled tokens."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from typing_extensions import override

from lightning_opd.errors import ConfigError, ConfigTypeError
from lightning_opd.functional.advantages import AdvantageEstimator, Immediate
from lightning_opd.functional.baselines import Baseline
from lightning_opd.functional.divergences import against
from lightning_opd.functional.fused import BlockFunction, fused
from lightning_opd.functional.log_ratio_transforms import Clip, LogRatioTransform, expected_log_ratio, shape
from lightning_opd.functional.logprobs import log_softmax
from lightning_opd.functional.off_policy import OffPolicyWeight
from lightning_opd.functional.policy_losses import PolicyLoss, Reinforce
from lightning_opd.functional.reductions import Reduction, TokenMean
from lightning_opd.interfaces import Objective, PrepareContext, StudentForward
from lightning_opd.objectives.forecast import foresee_policy_loss
from lightning_opd.objectives.importance import check_sampling, weighted
from lightning_opd.objectives.metrics import mean_over, per_teacher
from lightning_opd.objectives.teacher_heads import teacher_positions
from lightning_opd.types import LossTerms, RolloutBatch, RunSettings, Signal


@dataclass(frozen=True)
class PolicyGradient(Objective):
    """Learn from the sampled tokens: −Σ Â_t log π(a_t|s_t), with Â from r_t = log T − log π.

    With `Immediate` it needs one log-prob per token, which any teacher can return, also a server; it is
    noisier than matching whole distributions. r is recomputed from the current student at every update.
    The teacher's term is never normalised; outcome advantages are added after their own normalisation.

    Args:
        estimator: Turns log-ratios into advantages.
        baseline: Subtracted from the estimator's return; null for none. `model.critic` learns one.
        log_ratio_transform: Transforms r: one transform, several in this order, or null for none. The
            clip to ±5 nats keeps student = teacher the only fixed point under `Immediate`.
        teacher_log_ratio_transforms: Teacher's name → transforms for its prompts, instead of
            `log_ratio_transform`.
        policy_loss: Turns advantages into a loss; several updates per rollout batch need one that corrects
            for stale rollouts.
        off_policy: Weight of tokens that another policy sampled (a nucleus, another engine); null where
            tokens come from the student's whole distribution.
        reduction: Adds the tokens up.

    Reference:
        Liu, Fu, Shen, Jiang, On-policy distillation in model merging (2026), Theorem 1;
        `.github/THEORY.md`, sections 2 to 5.
    """

    estimator: AdvantageEstimator = Immediate()
    baseline: Baseline | None = None
    log_ratio_transform: LogRatioTransform | list[LogRatioTransform] | None = Clip()
    teacher_log_ratio_transforms: Mapping[str, LogRatioTransform | list[LogRatioTransform] | None] = dataclasses.field(
        default_factory=dict
    )
    policy_loss: PolicyLoss = Reinforce()
    off_policy: OffPolicyWeight | None = None
    reduction: Reduction = TokenMean()

    def __post_init__(self) -> None:
        """Refuse a KL value in the place of an advantage."""
        given: object = self.estimator
        if not isinstance(given, AdvantageEstimator):
            msg = (
                f"`estimator` must be an AdvantageEstimator, got {given!r}. A KL value as the sampled token's "
                "advantage has an expected gradient of zero: it is the same for every token of a state. Match "
                "distributions with `DistributionMatching`, or use `Immediate`."
            )
            raise ConfigTypeError(msg)

    @property
    @override
    def signals(self) -> frozenset[Signal]:
        return frozenset({Signal.LOGPROBS, Signal.HIDDEN_STATES} if self._needs_kl else {Signal.LOGPROBS})

    @property
    @override
    def needs_reference(self) -> bool:
        return any(
            s.needs_reference for name in (None, *self.teacher_log_ratio_transforms) for s in self._transforms(name)
        )

    @property
    @override
    def needs_siblings(self) -> bool:
        return self.baseline is not None and self.baseline.needs_siblings

    @property
    def _needs_kl(self) -> bool:
        return self.estimator.needs_kl or (self.baseline is not None and self.baseline.needs_kl)

    def _transforms(self, teacher: str | None = None) -> list[LogRatioTransform]:
        chosen = (
            self.log_ratio_transform
            if teacher is None
            else self.teacher_log_ratio_transforms.get(teacher, self.log_ratio_transform)
        )
        return [chosen] if isinstance(chosen, LogRatioTransform) else list(chosen or ())

    @override
    def check(self, settings: RunSettings) -> None:
        if not self.estimator.looks_ahead:
            super().check(settings)
        if settings.has_critic and self.baseline is not None:
            msg = (
                f"Both a critic and the baseline {type(self.baseline).__name__} would be subtracted. Remove "
                "`model.critic` or `objective.baseline`."
            )
            raise ConfigError(msg)
        unknown = sorted(set(self.teacher_log_ratio_transforms) - set(settings.teacher_names))
        if unknown:
            msg = (
                f"`teacher_log_ratio_transforms` names {unknown}, the teachers are "
                f"{list(settings.teacher_names)}. Correct the name, or add the teacher under `model.teachers`."
            )
            raise ConfigError(msg)
        if not settings.teacher_names:
            msg = (
                "PolicyGradient learns from teachers, but there is none. Name them under `model.teachers`, or use "
                "`OutcomeGradient` to learn from outcome rewards alone."
            )
            raise ConfigError(msg)
        if settings.updates_per_batch > 1 and not self.policy_loss.is_off_policy:
            msg = (
                f"`updates_per_batch` is {settings.updates_per_batch}: from the second update on the rollouts are "
                f"stale, which {type(self.policy_loss).__name__} does not correct. Use `policy_loss: PPOClip` or "
                "`TruncatedImportance`, or one update per rollout batch."
            )
            raise ConfigError(msg)
        check_sampling(settings, self.off_policy, "every log-ratio")
        if settings.off_policy_fraction > 0:
            msg = (
                "A policy gradient learns from the student's own tokens only, but a fraction of the rollout batches is "
                "off-policy. Use the objective `DistributionMatching`, or remove `data.off_policy_responses`."
            )
            raise ConfigError(msg)
        self._check_reference(settings)

    def _check_reference(self, settings: RunSettings) -> None:
        if self.needs_reference and not settings.has_reference:
            msg = "A log-ratio transform extrapolates from a reference model, but there is none. Set `model.reference`."
            raise ConfigError(msg)
        if self.needs_reference and self._needs_kl:
            msg = (
                f"{type(self.estimator).__name__} needs the expectation of the transformed log-ratio over the "
                "vocabulary, which a reference model's log-probs of the sampled tokens cannot give. Use `Immediate` or "
                "`LogRatioToGo` with `Extrapolation`."
            )
            raise ConfigError(msg)

    @override
    def prepare(self, rollouts: RolloutBatch, context: PrepareContext) -> None:
        super().prepare(rollouts, context)
        if self.baseline is None or not self.baseline.needs_other_rows:
            return

        def returns(part: RolloutBatch, student: StudentForward) -> Tensor:
            part.kl = self.state_kl(part, student)
            return self.returns(part, student.logprobs)

        def kl(part: RolloutBatch, student: StudentForward) -> Tensor:
            values = self.state_kl(part, student)
            assert values is not None
            return values

        # rounding differences of the engine do no harm in a baseline: it only must not read the row's own tokens
        own = context.over_batch(returns) if self._needs_kl else self.returns(rollouts, rollouts.rollout_logprobs)
        rollouts.baselines = self.baseline(
            own,
            rollouts.response_mask,
            rollouts.group_ids,
            context.over_batch(kl) if self.baseline.needs_kl else None,
            context.sum_over_ranks,
            is_constant_in_time=self.estimator.is_constant_in_time,
        )

    def _signal_mask(self, batch: RolloutBatch) -> Bool[Tensor, "batch time"]:
        """Tokens whose log-ratio counts, also in the sums of earlier tokens."""
        return batch.response_mask & batch.aligned_mask & batch.distill_mask

    def _transformed(self, batch: RolloutBatch, student_logprobs: Tensor) -> Float[Tensor, "batch time"]:
        def transformed(teacher: str | None = None) -> Tensor:
            return shape(self._transforms(teacher), student_logprobs, batch.teacher_logprobs, batch.reference_logprobs)

        ratio = transformed()
        for index, name in enumerate(batch.teacher_names):
            if name in self.teacher_log_ratio_transforms:
                own = (batch.teacher_ids == index)[:, None]
                ratio = torch.where(own, transformed(name), ratio)
        return torch.where(self._signal_mask(batch), ratio, 0.0)

    @override
    @torch.no_grad()
    def state_kl(self, batch: RolloutBatch, student: StudentForward) -> Float[Tensor, "batch time"] | None:
        if not self._needs_kl:
            return None

        def expected(index: int) -> BlockFunction:
            transforms = self._transforms(batch.teacher_names[index])

            def function(ours: Tensor, theirs: Tensor, *, gradient: bool) -> tuple[Tensor, Tensor]:
                return expected_log_ratio(transforms, log_softmax(ours), log_softmax(theirs)), ours[:, :0]

            return function

        mask = self._signal_mask(batch)
        where = teacher_positions(batch, student, mask)
        parts = [against(where.student, teacher, expected(index)) for index, teacher in enumerate(where.teachers)]
        return where.spread(fused(where.student, parts).values, mask)

    def returns(self, batch: RolloutBatch, student_logprobs: Tensor) -> Float[Tensor, "batch time"]:
        """Return the estimator's value at every token before any baseline, in nats, detached."""
        ratio = self._transformed(batch, student_logprobs.detach())
        return self.estimator(ratio, batch.response_mask, batch.kl)

    @override
    def value_targets(self, batch: RolloutBatch, student: StudentForward) -> Float[Tensor, "batch time"]:
        returns = self.returns(batch, student.logprobs)
        if batch.kl is None:
            return returns
        # replace the sampled log-ratio of this token by its expectation: less noise, same mean
        return returns - self._transformed(batch, student.logprobs.detach()) - batch.kl

    @override
    def advantages(self, batch: RolloutBatch, student: StudentForward) -> Float[Tensor, "batch time"]:
        is_local = not self.estimator.looks_ahead and (self.baseline is None or batch.baselines is not None)
        if is_local:
            own = partial(self._advantages, batch)
            foresee_policy_loss(student, batch, own, self.policy_loss, self.off_policy, self.reduction)
        return self._advantages(batch, student.logprobs.detach())

    def _advantages(self, batch: RolloutBatch, student_logprobs: Tensor) -> Float[Tensor, "batch time"]:
        ratio = self._transformed(batch, student_logprobs)
        values = batch.baselines
        if values is None and self.baseline is not None:
            own = self.estimator(ratio, batch.response_mask, batch.kl)
            values = self.baseline(own, batch.response_mask, batch.group_ids, batch.kl)
        distilled = self.estimator(ratio, batch.response_mask, batch.kl, values)
        distilled = torch.where(self._signal_mask(batch), distilled * batch.distill_weights[:, None], 0.0)
        outcome = torch.where(batch.response_mask, batch.outcome_advantages[:, None], 0.0)
        return distilled + outcome

    @override
    def loss(
        self,
        batch: RolloutBatch,
        student: StudentForward,
        advantages: Float[Tensor, "batch time"] | None = None,
    ) -> LossTerms:
        if batch.kl is None:
            batch.kl = self.state_kl(batch, student)
        if advantages is None:
            advantages = self.advantages(batch, student)
        logprobs, mask = student.logprobs, batch.response_mask
        losses = self.policy_loss(logprobs, student.old_logprobs, advantages)
        losses, metrics = weighted(losses, self.off_policy, batch, student)
        loss = self.reduction(losses, mask, batch.num_active_tokens, batch.num_trajectories)
        compared = mask & batch.aligned_mask
        raw = batch.teacher_logprobs - logprobs.detach()
        is_transformed = self._transformed(batch, logprobs.detach()) != raw
        return LossTerms(
            loss,
            {
                **per_teacher("teacher_kl", -raw, compared, batch),
                "transformed": mean_over(is_transformed, self._signal_mask(batch)),
                "entropy": mean_over(student.entropies, mask),
                "advantage": mean_over(advantages, mask),
                **metrics,
            },
        )
