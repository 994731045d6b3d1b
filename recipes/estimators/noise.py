"""Noise, bias and direction of every estimator's gradient, all on the same rollouts of one student."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import torch
from arms import CRITIC_LR, KL_TO_GO, MEASURED, REVERSE_KL, Arm, make_data, make_module, teachers_of
from jaxtyping import Float
from torch import Tensor
from training import make_trainer, optimizer_at
from typing_extensions import override

from lightning_opd import OPDModule, RolloutBatch, StudentConfig
from lightning_opd.callbacks import ExportHuggingFace
from lightning_opd.interfaces import PrepareContext, StudentForward
from lightning_opd.modules.critic import Critic
from lightning_opd.types import LossTerms

REFERENCE = "KL-to-go, leave-one-out"
"""Its expectation is the gradient of the sequence KL."""


class GradientMeter(OPDModule):
    """Takes every estimator's gradient of each rollout batch; only the critic learns.

    Args:
        models: Folder of merge_tiny's outputs.
        student: Folder of the student to measure.
        warm_up: First rollout batches that only fit the critic.
    """

    def __init__(self, models: str, student: str, warm_up: int) -> None:
        """Keep the student unchanged by a learning rate of 0."""
        super().__init__(
            StudentConfig(student),
            teachers_of(models),
            KL_TO_GO.objective,
            optimizer_at(0.0),
            critic=Critic(lr=CRITIC_LR),
        )
        self.warm_up = warm_up
        self.gradients: dict[str, list[Tensor]] = {name: [] for name in MEASURED}

    @override
    def compute_loss(self, batch: RolloutBatch, student: StudentForward, advantages: Tensor) -> LossTerms:
        """Measure every arm on this forward, then return the module's own loss."""
        if self.global_step >= self.warm_up:
            for name, arm in MEASURED.items():
                self.gradients[name].append(self._gradient(arm, batch, student))
        return super().compute_loss(batch, student, advantages)

    def _gradient(self, arm: Arm, batch: RolloutBatch, student: StudentForward) -> Tensor:
        objective = arm.objective
        own = dataclasses.replace(batch, baselines=batch.baselines if arm.has_critic else None, kl=None)
        still = StudentForward(student.hidden_states.detach(), student.head, own)
        with torch.no_grad():  # the one micro-batch is the whole rollout batch
            objective.prepare(own, PrepareContext(lambda function: function(own, still), 1, lambda x: x))
        loss = objective.loss(own, student).loss
        weights = [p for p in self.language_model.model.parameters() if p.requires_grad]
        return -torch.cat([g.flatten() for g in torch.autograd.grad(loss, weights, retain_graph=True)])


def pairs(gradients: dict[str, list[Tensor]]) -> Float[Tensor, "arm batch arm batch"]:
    """Return the inner product of every arm's gradient of each rollout batch with every other's."""
    stacked = torch.stack([torch.stack(own) for own in gradients.values()])
    num_arms, num_batches = stacked.shape[:2]
    flat = stacked.flatten(0, 1)
    return (flat @ flat.T).double().reshape(num_arms, num_batches, num_arms, num_batches)


def statistics(products: Float[Tensor, "arm batch arm batch"], reference: int) -> Float[Tensor, "2 arm"]:
    """Return noise/signal and the cosine to the reference's mean gradient, both unbiased under the roots.

    Products of different rollout batches estimate those of mean gradients: ⟨E g, E h⟩ = E⟨g_i, h_j⟩, i ≠ j.
    Noise/signal is the root of E‖g − E g‖² / ‖E g‖² for one rollout batch; nan where the signal drowns.
    """
    count = products.shape[1]
    same = torch.diagonal(products, dim1=1, dim2=3).sum(-1)
    between = (products.sum((1, 3)) - same) / (count * (count - 1))
    signal = between.diagonal()
    noise = same.diagonal() / count - signal
    cosine = between[:, reference] / (signal * signal[reference]).sqrt()
    return torch.stack([(noise / signal).sqrt(), cosine])


def rounded(value: Tensor) -> float | None:
    """Return a number for JSON, which has no NaN."""
    return round(float(value), 4) if bool(value.isfinite()) else None


def with_errors(products: Float[Tensor, "arm batch arm batch"], names: list[str]) -> dict[str, dict[str, float | None]]:
    """Return every arm's statistics with their standard errors (jackknife over rollout batches)."""
    reference, count = names.index(REFERENCE), products.shape[1]
    values = statistics(products, reference)
    rest = [[j for j in range(count) if j != i] for i in range(count)]
    left_out = torch.stack([statistics(products[:, keep][:, :, :, keep], reference) for keep in rest])
    errors = ((count - 1) / count * (left_out - left_out.mean(0)).square().sum(0)).sqrt()
    keys = ("noise_to_signal", "cosine")
    return {
        name: {
            **{key: rounded(values[i, arm]) for i, key in enumerate(keys)},
            **{f"{key}_error": rounded(errors[i, arm]) for i, key in enumerate(keys)},
        }
        for arm, name in enumerate(names)
    }


def measure(
    models: str, student: str, seed: int, rollout_batches: int, warm_up: int, prompts_per_batch: int
) -> dict[str, dict[str, float | None]]:
    """Return each estimator's noise-to-signal, and its cosine with the gradient of the sequence KL."""
    meter = GradientMeter(models, student, warm_up)
    make_trainer(warm_up + rollout_batches).fit(meter, make_data(KL_TO_GO, seed, prompts_per_batch, 1))
    return with_errors(pairs(meter.gradients), list(MEASURED))


def main(
    seed: int,
    models: str,
    output: str,
    rollout_batches: int = 32,
    warm_up: int = 24,
    prompts_per_batch: int = 16,
    steps_to_midway: int = 40,
) -> None:
    """Measure at the start, and after some steps of distribution matching.

    Args:
        seed: Of prompts and noise.
        models: Folder of merge_tiny's outputs.
        output: Folder for `noise.json`.
        rollout_batches: Rollout batches to measure on.
        warm_up: Rollout batches before them, which only fit the critic.
        prompts_per_batch: Prompts of a rollout batch, two siblings each.
        steps_to_midway: Training steps between the two measurements.
    """
    start, midway = str(Path(models) / "base" / "model"), str(Path(output) / "midway")
    module = make_module(models, REVERSE_KL, lr=1e-3, num_steps=2 * steps_to_midway)
    data = make_data(REVERSE_KL, seed, prompts_per_batch, 1)
    make_trainer(steps_to_midway, ExportHuggingFace(midway)).fit(module, data)
    settings = (rollout_batches, warm_up, prompts_per_batch)
    result = {
        "rollout_batches": rollout_batches,
        "trajectories_per_batch": 2 * prompts_per_batch,
        "start": measure(models, start, seed, *settings),
        "midway": measure(models, midway, seed + 1, *settings),
    }
    (Path(output) / "noise.json").write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
