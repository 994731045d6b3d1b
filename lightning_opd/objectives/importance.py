"""What every policy gradient does about tokens that another policy sampled: one weight per token, or a refusal."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from lightning_opd.errors import ConfigError
from lightning_opd.functional.off_policy import OffPolicyWeight
from lightning_opd.interfaces import StudentForward
from lightning_opd.objectives.metrics import mean_over
from lightning_opd.types import RolloutBatch, RunSettings


def check_sampling(settings: RunSettings, off_policy: OffPolicyWeight | None, what: str) -> None:
    """Refuse tokens of another policy than the student's whole distribution where nothing weighs them.

    Args:
        settings: Of the run.
        off_policy: The objective's weight, or None.
        what: Would be biased; ends the message's sentence.

    Raises:
        ConfigError: With the two cures.
    """
    if not settings.draws_from_student and off_policy is None:
        msg = (
            "The tokens are not drawn from the student's whole distribution (`top_p`, `top_k`, `min_p`, "
            f"`repetition_penalty`, or another engine), which biases {what}. Set `off_policy: TruncatedImportance`, "
            "or sample with the defaults of these."
        )
        raise ConfigError(msg)


def weighted(
    losses: Float[Tensor, "batch time"],
    off_policy: OffPolicyWeight | None,
    batch: RolloutBatch,
    student: StudentForward,
) -> tuple[Float[Tensor, "batch time"], dict[str, tuple[Tensor, Tensor]]]:
    """Return each token's policy-gradient loss times its weight, and what to log about the weights.

    Args:
        losses: Of a score-function gradient; nothing else depends on who sampled the token.
        off_policy: Weighs the tokens; None leaves the losses as they are and logs nothing.
        batch: Rows with the log-probs at which the tokens were sampled.
        student: The forward pass over these rows.
    """
    if off_policy is None:
        return losses, {}
    weights, mask = off_policy(student.old_logprobs, batch.rollout_logprobs), batch.response_mask
    gap = (student.old_logprobs - batch.rollout_logprobs).abs()
    return losses * weights, {"off_policy_weight": mean_over(weights, mask), "engine_gap": mean_over(gap, mask)}
