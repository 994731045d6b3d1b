from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_opd.data import OPDDataModule
from lightning_opd.functional.off_policy import TruncatedImportance
from lightning_opd.interfaces import Objective, OnProgress, OPDCallback, RolloutEngine
from lightning_opd.models import StudentConfig, load_causal_lm
from lightning_opd.modules import OPDModule
from lightning_opd.objectives import DistributionMatching, OutcomeGradient, PolicyGradient
from lightning_opd.teachers import LocalTeacher
from lightning_opd.types import RolloutBatch, Sample, Sampling
from tests.world import OBJECTIVES, Recorder, largest_difference, make_data, make_module, make_trainer

VOCAB = 288
"""Tokens of the student."""


class OtherPadding(OPDModule):
    """Sees every micro-batch shifted to the right: padded on both sides."""

    def training_step(self, batch: RolloutBatch, batch_idx: int) -> torch.Tensor:
        def pad(tensor: torch.Tensor) -> torch.Tensor:
            if tensor.ndim == 1:
                return tensor
            rest = (0, 0) * (tensor.ndim - 2)
            return torch.nn.functional.pad(tensor, (*rest, 3, 2))

        return super().training_step(batch.map(pad), batch_idx)


class EveryToken(RolloutEngine):
    """Writes every token of the vocabulary once after each prompt, as a uniform policy would."""

    def sync(self, student: torch.nn.Module, version: int) -> None:
        """Nothing to take over."""

    def generate(
        self,
        token_ids: Sequence[Sequence[int]],
        num_samples: int,
        seeds: Sequence[int],
        sampling: Sampling = Sampling(),
        on_progress: OnProgress | None = None,
    ) -> list[Sample]:
        assert num_samples == VOCAB
        logprob = -math.log(VOCAB)
        return [Sample((token,), (logprob,), is_truncated=True) for _ in token_ids for token in range(VOCAB)]


def step(folder: Path, module: OPDModule, data: OPDDataModule | None = None, **settings: Any) -> Recorder:
    recorder = Recorder()
    make_trainer(folder, recorder, max_steps=1, **settings).fit(module, data or make_data(prompts_per_batch=5))
    return recorder


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda o: type(o).__name__)
def test_gradient_does_not_depend_on_the_micro_batch_split(
    objective: Objective, double_world: Path, tmp_path: Path
) -> None:
    runs = [
        step(tmp_path, make_module(double_world, objective, "float64"), accumulate_grad_batches=parts)
        for parts in (1, 2, 5)
    ]
    for run in runs[1:]:
        assert torch.equal(run.rollout_batches[0].token_ids, runs[0].rollout_batches[0].token_ids)
        assert largest_difference(run.gradients[0], runs[0].gradients[0]) < 1e-10
    assert max(float(g.abs().max()) for g in runs[0].gradients[0].values()) > 1e-3


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda o: type(o).__name__)
def test_gradient_does_not_depend_on_padding(objective: Objective, double_world: Path, tmp_path: Path) -> None:
    plain = make_module(double_world, objective, "float64")
    padded = OtherPadding(plain.student_config, dict(plain.teachers.distinct), objective)
    difference = largest_difference(
        step(tmp_path, plain).gradients[0],
        step(tmp_path, padded).gradients[0],
    )
    assert difference < 1e-10


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda o: type(o).__name__)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_teacher_equal_to_student_gives_no_signal(
    objective: Objective, temperature: float, world: Path, tmp_path: Path
) -> None:
    teacher = LocalTeacher(str(world / "student"))
    module = OPDModule(StudentConfig(str(world / "student")), {"math": teacher, "code": teacher}, objective)
    data = make_data(sampling=Sampling(max_new_tokens=12, temperature=temperature))
    recorder = step(tmp_path, module, data)
    rollouts = recorder.rollout_batches[0]
    log_ratio = (rollouts.teacher_logprobs - rollouts.rollout_logprobs)[rollouts.response_mask]
    assert rollouts.response_mask.sum() > 20
    assert float(log_ratio.abs().max()) < 1e-5
    assert max(float(g.abs().max()) for g in recorder.gradients[0].values()) < 1e-5


def test_distribution_matching_is_the_expectation_of_the_immediate_policy_gradient(
    double_world: Path, tmp_path: Path
) -> None:
    """By enumeration: siblings that are every token once, each weighed with its probability under the student."""
    settings: dict[str, Any] = {
        "prompts_per_batch": 1,
        "samples_per_prompt": VOCAB,
        "sampling": Sampling(max_new_tokens=1),
    }
    everywhere = PolicyGradient(log_ratio_transform=None, off_policy=TruncatedImportance(max_weight=VOCAB))
    gradients = []
    for objective in (everywhere, DistributionMatching()):
        module = make_module(double_world, objective, "float64")
        gradients.append(step(tmp_path, module, make_data(engine=EveryToken(), **settings)).gradients[0])
    assert largest_difference(*gradients) < 1e-6  # norms are float32
    assert max(float(g.abs().max()) for g in gradients[0].values()) > 0.1


class Waves(OPDCallback):
    """An outcome advantage for every token: its own sine."""

    adds_outcome = True

    def on_rollout_end(self, trainer: object, module: object, rollouts: RolloutBatch) -> None:
        rollouts.outcome_advantages = wave(rollouts.token_ids[rollouts.response_mask])


def wave(token_ids: torch.Tensor) -> torch.Tensor:
    return token_ids.to(torch.float64).sin()


@pytest.mark.parametrize("objective", [OutcomeGradient, DistributionMatching, PolicyGradient], ids=lambda o: o.__name__)
def test_weighted_outcomes_have_the_gradient_of_the_expected_reward(
    objective: type[OutcomeGradient], double_world: Path, tmp_path: Path
) -> None:
    """By enumeration: another engine generates every token once, and weights make the student's expectation of it."""
    settings: dict[str, Any] = {
        "prompts_per_batch": 1,
        "samples_per_prompt": VOCAB,
        "sampling": Sampling(max_new_tokens=1),
    }

    def gradients(*callbacks: OPDCallback) -> Recorder:
        module = make_module(double_world, objective(off_policy=TruncatedImportance(max_weight=VOCAB)), "float64")
        recorder = Recorder()
        trainer = make_trainer(tmp_path, *callbacks, recorder, max_steps=1)
        trainer.fit(module, make_data(engine=EveryToken(), **settings))
        return recorder

    recorder = gradients(Waves())
    prompt = recorder.rollout_batches[0].token_ids[:1, :-1]
    student = load_causal_lm(str(double_world / "student"), dtype="float64")
    probabilities = student(prompt).logits[0, -1, :VOCAB].softmax(-1)
    (-(probabilities * wave(torch.arange(VOCAB))).sum()).backward()
    got = recorder.gradients[0]
    if objective is not OutcomeGradient:  # the rest is the teacher's term, which the weights of outcomes do not touch
        got = {name: g - other for (name, g), other in zip(got.items(), gradients().gradients[0].values(), strict=True)}
    expected = {f"student.{name}": p.grad for name, p in student.named_parameters() if p.grad is not None}
    assert largest_difference(got, expected) < 1e-6  # norms are float32
    assert max(float(g.abs().max()) for g in expected.values()) > 1e-2
    assert recorder.logged[0]["train/off_policy_weight"] == pytest.approx(1.0, rel=1e-6), "the mean of VOCAB · π"


def test_distillation_weights_change_the_gradient_but_not_the_denominator(double_world: Path, tmp_path: Path) -> None:
    class Mask(OPDCallback):
        def on_rollout_end(self, trainer: object, module: object, rollouts: RolloutBatch) -> None:
            rollouts.distill_weights = torch.tensor([1.0, 0.0] * (len(rollouts) // 2), dtype=torch.float64)

    recorder, plain = Recorder(), Recorder()
    module = make_module(double_world, dtype="float64")
    make_trainer(tmp_path, plain, max_steps=1).fit(module, make_data())
    module = make_module(double_world, dtype="float64")
    make_trainer(tmp_path, Mask(), recorder, max_steps=1).fit(module, make_data())
    assert recorder.rollout_batches[0].num_active_tokens == plain.rollout_batches[0].num_active_tokens
    assert largest_difference(recorder.gradients[0], plain.gradients[0]) > 1e-6
