"""Whether the objectives say beforehand with which gradient each value comes back, and that nothing hangs on it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from typing_extensions import override

from lightning_opd.functional.advantages import LogRatioToGo
from lightning_opd.functional.divergences import JensenShannon, ReverseKL
from lightning_opd.functional.log_ratio_transforms import Clip
from lightning_opd.functional.logprobs import token_logprobs
from lightning_opd.functional.off_policy import MaskedImportance
from lightning_opd.functional.policy_losses import PPOClip, TruncatedImportance
from lightning_opd.functional.reductions import Reduction, SequenceMean, TrajectorySum
from lightning_opd.functional.top_k import TopK
from lightning_opd.interfaces import Objective
from lightning_opd.objectives import DistributionMatching, Likelihood, OutcomeGradient, PolicyGradient
from tests.objectives.test_objectives import World


@dataclass(frozen=True)
class Softened(Reduction):
    """A user's own: tokens with a large loss count less, so no gradient is known before the values."""

    @override
    def __call__(self, losses: Tensor, mask: Tensor, num_active_tokens: Tensor, num_trajectories: Tensor) -> Tensor:
        return torch.where(mask, losses, 0.0).tanh().sum() / num_active_tokens


KNOWN: list[Objective] = [
    DistributionMatching(),
    DistributionMatching(JensenShannon(), SequenceMean()),
    DistributionMatching(TopK(ReverseKL(), 3, "union"), TrajectorySum()),
    DistributionMatching(policy_loss=PPOClip(), off_policy=MaskedImportance(0.95, 8.0)),
    PolicyGradient(),
    PolicyGradient(log_ratio_transform=[Clip(0.5)], policy_loss=PPOClip(), reduction=SequenceMean()),
    PolicyGradient(policy_loss=TruncatedImportance(), off_policy=MaskedImportance(), reduction=TrajectorySum()),
    OutcomeGradient(),
    OutcomeGradient(PPOClip(), MaskedImportance(0.95, 8.0)),
    Likelihood(),
]
UNKNOWN: list[Objective] = [
    DistributionMatching(ReverseKL(), Softened()),
    PolicyGradient(LogRatioToGo()),
    PolicyGradient(reduction=Softened()),
    OutcomeGradient(reduction=Softened()),
    Likelihood(Softened()),
]


def world() -> World:
    made = World(0.7)
    made.batch.outcome_advantages = torch.tensor([0.5, -1.0, 2.0, 0.0], dtype=torch.float64)
    made.batch.distill_weights = torch.tensor([1.0, 0.5, 2.0, 1.0], dtype=torch.float64)
    made.batch.distill_mask[0, 2] = False
    made.batch.rollout_logprobs = made.batch.rollout_logprobs * 1.1  # another engine's
    return made


def count(monkeypatch: pytest.MonkeyPatch, run: Callable[[], object]) -> int:
    """Return how often a matrix is multiplied by states or by gradients of logits."""
    calls = [0]
    original = torch.mm

    def counted(*arguments: Tensor, out: Tensor | None = None) -> Tensor:
        calls[0] += 1
        return original(*arguments) if out is None else original(*arguments, out=out)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "mm", counted)
        run()
    return calls[0]


@pytest.mark.parametrize("objective", KNOWN, ids=str)
def test_the_student_forms_its_logits_once_where_the_gradient_is_known(
    objective: Objective, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = world()
    found = count(monkeypatch, lambda: made.gradient(objective.loss(made.batch, made.forward()).loss))
    tokens = 2  # logits and gradient in the states
    teachers = 2 * (tokens + 1)  # for each the same, also for the outcome rewards, and the teacher's logits
    assert found == (teachers if isinstance(objective, DistributionMatching) else tokens)


def test_tokens_that_no_teacher_compares_get_a_pass_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """All tokens then, as the outcome rewards count everywhere."""
    made, objective = world(), DistributionMatching()
    made.batch.aligned_mask[0, 2] = False
    found = count(monkeypatch, lambda: made.gradient(objective.loss(made.batch, made.forward()).loss))
    assert found == 2 * 3 + 2


@pytest.mark.parametrize("is_aligned", [True, False])
@pytest.mark.parametrize("objective", [*KNOWN, *UNKNOWN], ids=str)
def test_the_gradient_is_that_of_the_plain_values(
    objective: Objective, is_aligned: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against the same loss of dense log-probs, or of divergences of dense logits."""
    made = world()
    made.batch.aligned_mask[0, 2] = is_aligned
    actual = made.gradient(objective.loss(made.batch, made.forward()).loss)
    student = made.forward()
    dense = token_logprobs(made.student_logits(), made.batch.token_ids, 0.7)
    vars(student)["_statistics"] = torch.where(made.batch.response_mask, dense, 0.0), torch.zeros_like(dense)
    monkeypatch.setattr("lightning_opd.objectives.distribution_matching.forecast", lambda *_: None)
    expected = made.gradient(objective.loss(made.batch, student).loss)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)
