"""The arms of the comparison: one objective each, on the same models, tasks, reduction and optimiser."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from training import cosine_to_a_tenth, optimizer_at

from lightning_opd import OPDDataModule, OPDModule, Sampling, StudentConfig, Task
from lightning_opd.callbacks import OutcomeReward
from lightning_opd.collection import OffPolicyResponses, TeacherResponses
from lightning_opd.data import Evaluation
from lightning_opd.functional.advantages import FullTrajectory, Immediate, KLToGo, LogRatioToGo
from lightning_opd.functional.baselines import LeaveOneOut
from lightning_opd.functional.outcomes import GRPO
from lightning_opd.functional.reductions import TrajectorySum
from lightning_opd.interfaces import Objective
from lightning_opd.modules.critic import Critic
from lightning_opd.objectives import DistributionMatching, Likelihood, OutcomeGradient, PolicyGradient
from lightning_opd.tasks import Arithmetic, Mixture, Strings

TEACHERS = ("arithmetic", "strings")
SAMPLES_PER_PROMPT = 2
CRITIC_LR = 3e-3


@dataclass(frozen=True)
class Arm:
    """One way to train.

    Args:
        objective: Its loss.
        has_critic: Whether a learned value is subtracted from the returns.
        is_off_policy: Whether the teachers generate the responses.
        has_outcome: Whether it learns from outcome rewards.
    """

    objective: Objective
    has_critic: bool = False
    is_off_policy: bool = False
    has_outcome: bool = False


_gradient = functools.partial(PolicyGradient, reduction=TrajectorySum(), log_ratio_transform=None)

REVERSE_KL = Arm(DistributionMatching(reduction=TrajectorySum()))
IMMEDIATE = Arm(_gradient(estimator=Immediate()))
DISCOUNTED = Arm(_gradient(estimator=LogRatioToGo(0.9), baseline=LeaveOneOut()))
TO_GO = Arm(_gradient(estimator=LogRatioToGo(), baseline=LeaveOneOut()))
KL_TO_GO = Arm(_gradient(estimator=KLToGo()), has_critic=True)
FULL = Arm(_gradient(estimator=FullTrajectory(), baseline=LeaveOneOut()))
SUPERVISED = Arm(Likelihood(reduction=TrajectorySum()), is_off_policy=True)

TRAINED: Mapping[str, Arm] = {
    "reverse KL": REVERSE_KL,
    "immediate": IMMEDIATE,
    "to-go γ=.9, leave-one-out": DISCOUNTED,
    "to-go, leave-one-out": TO_GO,
    "KL-to-go, critic": KL_TO_GO,
    "GRPO, no teacher": Arm(OutcomeGradient(reduction=TrajectorySum()), has_outcome=True),
    "supervised on teacher samples": SUPERVISED,
}
"""Arms of the comparison by training."""

MEASURED: Mapping[str, Arm] = {
    "reverse KL": REVERSE_KL,
    "immediate": IMMEDIATE,
    "to-go γ=.9, leave-one-out": DISCOUNTED,
    "KL-to-go, critic": KL_TO_GO,
    "KL-to-go, leave-one-out": Arm(_gradient(estimator=KLToGo(), baseline=LeaveOneOut())),
    "to-go, leave-one-out": TO_GO,
    "KL-to-go": Arm(_gradient(estimator=KLToGo())),
    "to-go": Arm(_gradient(estimator=LogRatioToGo())),
    "full trajectory, leave-one-out": FULL,
    "full trajectory": Arm(_gradient(estimator=FullTrajectory())),
}
"""Arms of the comparison by gradient."""


@functools.cache
def both_tasks() -> Task:
    """Return the mixture of merge_tiny."""
    return Mixture({"arithmetic": Arithmetic(), "strings": Strings()})


def make_data(arm: Arm, seed: int, prompts_per_batch: int, num_validation: int) -> OPDDataModule:
    """Return rollout batches with two siblings per prompt."""
    return OPDDataModule(
        both_tasks(),
        prompts_per_batch=prompts_per_batch,
        samples_per_prompt=SAMPLES_PER_PROMPT,
        sampling=Sampling(max_new_tokens=40),
        evaluation=Evaluation(num_validation_prompts=num_validation),
        off_policy_responses=OffPolicyResponses(TeacherResponses(), fraction=1.0) if arm.is_off_policy else None,
        seed=seed,
        max_measured_prompts=256,  # all are about as long, and many runs read them
    )


def make_module(models: str, arm: Arm, lr: float, num_steps: int) -> OPDModule:
    """Return the base of merge_tiny with both experts as teachers."""
    return OPDModule(
        StudentConfig(str(Path(models) / "base" / "model")),
        teachers_of(models),
        arm.objective,
        optimizer_at(lr),
        cosine_to_a_tenth(num_steps),
        critic=Critic(lr=CRITIC_LR) if arm.has_critic else None,
    )


def teachers_of(models: str) -> dict[str, str]:
    """Return the experts of merge_tiny: name → folder."""
    return {name: str(Path(models) / name / "model") for name in TEACHERS}


def callbacks_of(arm: Arm) -> list[OutcomeReward]:
    """Return what the arm needs beside its objective."""
    return [OutcomeReward(advantage=GRPO())] if arm.has_outcome else []
