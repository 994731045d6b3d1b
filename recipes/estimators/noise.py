"""Noise, bias and direction of each estimator's gradient, all on the same rollouts of one student."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

import lightning as L
import torch
from arms import ARMS, MEASURED, TEACHERS, make_data, make_module
from torch import Tensor

from lightning_opd import OPDModule
from lightning_opd.callbacks import ExportHuggingFace
from lightning_opd.interfaces import Objective, StudentForward, WindowContext
from lightning_opd.models import Student
from lightning_opd.types import LossTerms, RolloutBatch

REFERENCE = "KL-to-go, leave-one-out"
"""Unbiased for the gradient of the sequence KL, and the least noisy of those."""


class Moments:
    """Sums over windows of a gradient, of its square, and of both halves of the windows."""

    def __init__(self) -> None:
        """Start empty."""
        self.count = 0
        self.halves: list[Tensor | float] = [0.0, 0.0]
        self.square = 0.0

    def add(self, gradient: Tensor) -> None:
        """Take one window's gradient in."""
        self.halves[self.count % 2] = self.halves[self.count % 2] + gradient
        self.square += float(gradient.square().sum())
        self.count += 1

    @property
    def mean(self) -> Tensor:
        """Mean gradient."""
        return torch.as_tensor(self.halves[0] + self.halves[1]) / self.count

    def noise_to_signal(self) -> float:
        """Return the root of E‖g − ḡ‖² / ‖E g‖², both free of the bias of a finite number of windows."""
        mean_square = float(self.mean.square().sum())
        variance = (self.square / self.count - mean_square) * self.count / (self.count - 1)
        signal = mean_square - variance / self.count
        return float("inf") if signal <= 0 else (variance / signal) ** 0.5


def cosine(one: Tensor, other: Tensor) -> float:
    """Return the cosine of the angle between two gradients."""
    return float(torch.nn.functional.cosine_similarity(one, other, dim=0))


class GradientMeter(OPDModule):
    """Takes every estimator's gradient of each window; its optimiser changes nothing (lr 0)."""

    moments: dict[str, Moments]

    def compute_loss(self, batch: RolloutBatch, student: StudentForward, advantages: Tensor) -> LossTerms:
        """Measure every objective on the same forward, then return the module's own loss."""
        weights = [p for p in self.language_model.model.parameters() if p.requires_grad]
        heads = self.teachers.heads()
        context = WindowContext(heads, 1, lambda x: x)
        for name, objective in MEASURED.items():
            own = dataclasses.replace(batch, baselines=None, kl=None)
            still = StudentForward(student.hidden_states.detach(), student.head, own)
            with torch.no_grad():  # one micro-batch is the whole window
                objective.prepare(own, lambda function, own=own, still=still: function(own, still), context)
            loss = self._loss(objective, own, student)
            gradients = torch.autograd.grad(loss, weights, retain_graph=True)
            self.moments[name].add(-torch.cat([g.flatten() for g in gradients]))
        return super().compute_loss(batch, student, advantages)

    def _loss(self, objective: Objective, batch: RolloutBatch, student: StudentForward) -> Tensor:
        heads = self.teachers.heads()
        batch.kl = objective.state_kl(batch, student, heads)
        return objective.loss(batch, student, heads=heads).loss


def measure(models: str, student: str, windows: int, prompts_per_window: int, seed: int) -> dict[str, Mapping]:
    """Return each estimator's noise-to-signal and its cosines with the gradient of the sequence KL."""
    teachers = {name: str(Path(models) / name / "model") for name in TEACHERS}
    meter = GradientMeter(Student(student), teachers, optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.0))
    meter.moments = {name: Moments() for name in MEASURED}
    quiet_trainer(windows).fit(meter, make_data(prompts_per_window, seed))
    reference = meter.moments[REFERENCE]
    first, second = (torch.as_tensor(half) for half in reference.halves)
    ceiling = max(cosine(first, second), 0.0) ** 0.5
    rows = {}
    for name, moments in meter.moments.items():
        ours = [torch.as_tensor(half) for half in moments.halves]
        across = 0.5 * (cosine(ours[0], second) + cosine(ours[1], first))  # never the same rollouts on both sides
        floor = max(cosine(ours[0], ours[1]), 0.0) ** 0.5
        rows[name] = {
            "noise_to_signal": moments.noise_to_signal(),
            "cosine": across,
            "cosine_without_noise": across / (ceiling * floor) if ceiling * floor > 0 else None,
        }
    return rows


def quiet_trainer(num_steps: int, *callbacks: L.Callback, **settings: object) -> L.Trainer:
    """Return a trainer on one CPU process that saves and shows nothing but its bar."""
    return L.Trainer(
        max_steps=num_steps,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        gradient_clip_val=1.0,
        callbacks=list(callbacks),
        **{"limit_val_batches": 0, **settings},  # type: ignore[arg-type]
    )


def main(
    seed: int,
    models: str,
    output: str,
    windows: int = 48,
    prompts_per_window: int = 32,
    steps_to_midway: int = 40,
) -> None:
    """Measure at the start, and after some steps of distribution matching."""
    start = str(Path(models) / "base" / "model")
    midway = str(Path(output) / "midway")
    arm = ARMS["reverse KL"]
    module = make_module(models, start, arm, lr=2e-3, num_steps=2 * steps_to_midway)
    quiet_trainer(steps_to_midway, ExportHuggingFace(midway)).fit(module, make_data(prompts_per_window, seed))
    result = {
        "windows": windows,
        "trajectories_per_window": prompts_per_window * 2,
        "start": measure(models, start, windows, prompts_per_window, seed),
        "midway": measure(models, midway, windows, prompts_per_window, seed + 1),
    }
    Path(output).mkdir(parents=True, exist_ok=True)
    (Path(output) / "noise.json").write_text(json.dumps(result, indent=1) + "\n")
