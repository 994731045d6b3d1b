"""The arms that are compared: one objective each, all with the same reduction, models and tasks."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch

from lightning_opd import OPDDataModule, OPDModule, Sampling, Student
from lightning_opd.callbacks import OutcomeReward
from lightning_opd.data import Evaluation, GivenResponses, TeacherResponses
from lightning_opd.functional.advantages import FullTrajectory, Immediate, KLToGo, LogRatioToGo
from lightning_opd.functional.baselines import LeaveOneOut
from lightning_opd.functional.outcomes import GRPO
from lightning_opd.functional.reductions import TrajectorySum
from lightning_opd.functional.shaping import Clip
from lightning_opd.interfaces import Objective, Task
from lightning_opd.modules import Critic
from lightning_opd.objectives import DistributionMatching, Likelihood, OutcomeGradient, PolicyGradient
from lightning_opd.tasks import Arithmetic, Mixture, Strings

REDUCTION = TrajectorySum()
TEACHERS = ("arithmetic", "strings")
SAMPLES_PER_PROMPT = 2


@dataclass(frozen=True)
class Arm:
    """One way to train.

    Args:
        objective: Its loss.
        has_critic: Whether a learned value is subtracted.
        is_given: Whether the teachers write the responses.
        has_outcome: Whether it learns from outcome rewards.
        lrs: Learning rates to choose from.
    """

    objective: Objective
    has_critic: bool = False
    is_given: bool = False
    has_outcome: bool = False
    lrs: tuple[float, ...] = field(default=(5e-4, 1e-3, 2e-3))


def policy_gradient(**settings: object) -> PolicyGradient:
    """Return a policy gradient with the recipe's reduction and a clip that keeps to-go sums honest."""
    return PolicyGradient(reduction=REDUCTION, shaping=Clip(20.0), **settings)  # type: ignore[arg-type]


ARMS: dict[str, Arm] = {
    "reverse KL": Arm(DistributionMatching(reduction=REDUCTION)),
    "immediate": Arm(policy_gradient(estimator=Immediate())),
    "to-go γ=.9, leave-one-out": Arm(policy_gradient(estimator=LogRatioToGo(0.9), baseline=LeaveOneOut())),
    "to-go, leave-one-out": Arm(policy_gradient(estimator=LogRatioToGo(), baseline=LeaveOneOut())),
    "KL-to-go, critic": Arm(policy_gradient(estimator=KLToGo()), has_critic=True),
    "full trajectory, leave-one-out": Arm(policy_gradient(estimator=FullTrajectory(), baseline=LeaveOneOut())),
    "GRPO (no teacher)": Arm(OutcomeGradient(reduction=REDUCTION), has_outcome=True),
    "supervised on teacher samples": Arm(Likelihood(reduction=REDUCTION), is_given=True),
}

MEASURED: dict[str, PolicyGradient | DistributionMatching] = {
    "reverse KL": DistributionMatching(reduction=REDUCTION),
    "immediate": policy_gradient(estimator=Immediate()),
    "to-go γ=.9, leave-one-out": policy_gradient(estimator=LogRatioToGo(0.9), baseline=LeaveOneOut()),
    "KL-to-go, leave-one-out": policy_gradient(estimator=KLToGo(), baseline=LeaveOneOut()),
    "to-go, leave-one-out": policy_gradient(estimator=LogRatioToGo(), baseline=LeaveOneOut()),
    "KL-to-go": policy_gradient(estimator=KLToGo()),
    "to-go": policy_gradient(estimator=LogRatioToGo()),
    "full trajectory, leave-one-out": policy_gradient(estimator=FullTrajectory(), baseline=LeaveOneOut()),
    "full trajectory": policy_gradient(estimator=FullTrajectory()),
}


def task() -> Task:
    """Return both tasks of merge_tiny."""
    return Mixture({"arithmetic": Arithmetic(), "strings": Strings()})


def make_data(
    prompts_per_window: int, seed: int, *, is_given: bool = False, num_validation: int = 128
) -> OPDDataModule:
    """Return windows with two siblings per prompt."""
    return OPDDataModule(
        task(),
        prompts_per_window=prompts_per_window,
        samples_per_prompt=SAMPLES_PER_PROMPT,
        sampling=Sampling(max_new_tokens=40),
        evaluation=Evaluation(num_validation_prompts=num_validation),
        given_responses=GivenResponses(TeacherResponses(), share=1.0) if is_given else None,
        seed=seed,
    )


def make_module(models: str, student: str, arm: Arm, lr: float, num_steps: int) -> OPDModule:
    """Return a student with both experts, AdamW and a cosine to a tenth."""
    return OPDModule(
        Student(student),
        {name: str(Path(models) / name / "model") for name in TEACHERS},
        arm.objective,
        lambda parameters: torch.optim.AdamW(parameters, lr=lr, betas=(0.9, 0.95), weight_decay=0.0),
        lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_steps, eta_min=lr / 10),
        critic=Critic(lr=3e-3) if arm.has_critic else None,
    )


def callbacks(arm: Arm) -> list[OutcomeReward]:
    """Return what the arm needs beside its objective."""
    return [OutcomeReward(advantage=GRPO())] if arm.has_outcome else []
