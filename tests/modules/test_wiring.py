"""What the parts of a training step hand to each other, held against plain forwards."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_opd.functional import off_policy
from lightning_opd.functional.advantages import FullTrajectory, Immediate, KLToGo
from lightning_opd.functional.baselines import Baseline, LeaveOneOut, StateKL
from lightning_opd.functional.divergences import ReverseKL
from lightning_opd.functional.log_ratio_transforms import Clip
from lightning_opd.functional.policy_losses import PPOClip
from lightning_opd.functional.top_k import TopK
from lightning_opd.interfaces import Objective, StudentForward, Teacher
from lightning_opd.models import Lora
from lightning_opd.modules import OPDModule
from lightning_opd.objectives import DistributionMatching, PolicyGradient
from lightning_opd.teachers import LocalTeacher
from lightning_opd.types import RolloutBatch, SampledTokens, Sampling, Signal, TeacherScores
from tests.replay import chosen, distributions, fit, policy_gradient, teachers
from tests.world import OBJECTIVES, STOPS, Recorder, largest_difference, make_data, make_module, make_trainer


def test_the_weight_of_a_token_from_elsewhere_multiplies_its_gradient(double_world: Path, tmp_path: Path) -> None:
    """A nucleus draws every token more often than the student would: w = π / π_rollout < 1."""
    objective = PolicyGradient(log_ratio_transform=None, off_policy=off_policy.TruncatedImportance())
    data: dict[str, Any] = {"sampling": Sampling(max_new_tokens=12, top_p=0.8, stop_token_ids=STOPS)}
    recorder = fit(tmp_path, make_module(double_world, objective, "float64"), data=data)
    rollouts = recorder.rollout_batches[0]

    def weighted(logprobs: Tensor) -> Tensor:
        return (logprobs - rollouts.rollout_logprobs).exp() * (rollouts.teacher_logprobs - logprobs)

    assert largest_difference(recorder.gradients[0], policy_gradient(double_world, rollouts, weighted)) < 1e-9
    plain = policy_gradient(double_world, rollouts, lambda logprobs: rollouts.teacher_logprobs - logprobs)
    assert largest_difference(recorder.gradients[0], plain) > 1e-3


@pytest.mark.parametrize("baseline", [None, StateKL()], ids=lambda b: type(b).__name__)
def test_a_teachers_own_transform_acts_on_its_own_rows(
    baseline: Baseline | None, double_world: Path, tmp_path: Path
) -> None:
    """On the sampled log-ratio, and on its expectation over the vocabulary."""
    bounds: Mapping[str, float] = {"code": 0.4, "math": 2.0}
    objective = PolicyGradient(
        Immediate(), baseline, Clip(bounds["math"]), teacher_log_ratio_transforms={"code": Clip(bounds["code"])}
    )
    recorder = fit(tmp_path, make_module(double_world, objective, "float64"))
    rollouts = recorder.rollout_batches[0]
    bound = torch.tensor([bounds[rollouts.teacher_names[i]] for i in rollouts.teacher_ids], dtype=torch.float64)
    assert len(bound.unique()) == 2
    ours, theirs = distributions(double_world / "student", rollouts), teachers(double_world, rollouts)
    ratios = torch.minimum(torch.maximum(theirs - ours, -bound[:, None, None]), bound[:, None, None])
    expectation = (ours.exp() * ratios).sum(-1) if baseline else 0.0
    advantages = chosen(ratios, rollouts) - expectation
    expected = policy_gradient(double_world, rollouts, lambda _: advantages)
    assert largest_difference(recorder.gradients[0], expected) < 1e-6  # norms are float32


def test_a_return_that_is_constant_in_time_outlives_its_row(double_world: Path, tmp_path: Path) -> None:
    """Past its sibling's end a row is still compared with the sibling's one return, not with 0."""
    objective = PolicyGradient(FullTrajectory(), LeaveOneOut(), log_ratio_transform=None)
    recorder = fit(tmp_path, make_module(double_world, objective, "float64"))
    rollouts = recorder.rollout_batches[0]
    mask = rollouts.response_mask
    lengths = mask.sum(1).view(-1, 2)
    assert (lengths[:, 0] != lengths[:, 1]).any(), "siblings must have uneven lengths"
    assert torch.equal(rollouts.group_ids[0::2], rollouts.group_ids[1::2])

    def compared(logprobs: Tensor) -> Tensor:
        totals = torch.where(mask, rollouts.teacher_logprobs - logprobs, 0.0).sum(1)
        siblings = totals.view(-1, 2).flip(1).flatten()
        return (totals - siblings)[:, None].expand_as(logprobs)

    assert largest_difference(recorder.gradients[0], policy_gradient(double_world, rollouts, compared)) < 1e-6


class HalfDeaf(LocalTeacher):
    """Has nothing to say about every third response token, as a teacher of another tokenizer would."""

    def score(self, tokens: SampledTokens, signals: frozenset[Signal]) -> TeacherScores:
        scores = super().score(tokens, signals)
        return dataclasses.replace(scores, aligned_mask=scores.aligned_mask & (tokens.response_mask.cumsum(1) % 3 != 1))


def half_deaf(world: Path, objective: Objective, dtype: str, kind: type[OPDModule] = OPDModule) -> OPDModule:
    heard: dict[str, Teacher] = {name: HalfDeaf(str(world / name), dtype=dtype) for name in ("math", "code")}
    return make_module(world, objective, dtype, heard, kind)


def test_tokens_that_are_not_compared_still_count_in_the_denominator(double_world: Path, tmp_path: Path) -> None:
    objective = PolicyGradient(log_ratio_transform=None)
    recorder = fit(tmp_path, half_deaf(double_world, objective, "float64"), accumulate_grad_batches=2)
    rollouts = recorder.rollout_batches[0]
    mask, aligned = rollouts.response_mask, rollouts.aligned_mask & rollouts.response_mask
    assert 0 < int(aligned.sum()) < int(mask.sum())
    assert float(rollouts.num_active_tokens) == float(mask.sum())

    def compared(logprobs: Tensor) -> Tensor:
        return torch.where(aligned, rollouts.teacher_logprobs - logprobs, 0.0)

    expected = policy_gradient(double_world, rollouts, compared, num_tokens=float(mask.sum()))
    assert largest_difference(recorder.gradients[0], expected) < 1e-9


@pytest.mark.parametrize("updates", [1, 2])
@pytest.mark.parametrize("objective", [PolicyGradient(policy_loss=PPOClip()), OBJECTIVES[1]], ids=["PG", "DM"])
def test_the_denominator_of_an_update_is_its_own_response_tokens(
    objective: Objective, updates: int, world: Path, tmp_path: Path
) -> None:
    """Summed over the micro-batches of one update, and no mask takes anything off it."""
    seen: list[tuple[float, float, float, int]] = []

    class Seen(OPDModule):
        def compute_advantages(self, batch: RolloutBatch, student: StudentForward) -> Tensor:
            counts = (batch.response_mask.sum(), batch.num_active_tokens, batch.num_trajectories)
            counted, active, rows = map(float, counts)
            seen.append((counted, active, rows, len(batch)))
            return super().compute_advantages(batch, student)

    module = half_deaf(world, objective, "float32", Seen)
    data = {"updates_per_batch": updates}
    recorder = fit(tmp_path, module, max_steps=updates, accumulate_grad_batches=2, data=data)
    for update in range(updates):
        own = seen[2 * update : 2 * update + 2]
        assert {tokens for _, tokens, _, _ in own} == {sum(counted for counted, *_ in own)}
        assert {rows for _, _, rows, _ in own} == {float(sum(count for *_, count in own))}
    assert sum(counted for counted, *_ in seen) == float(recorder.rollout_batches[0].response_mask.sum())


@pytest.mark.parametrize("path", ["logprobs", "hidden_states", "top_k"])
def test_a_teachers_own_temperature_reaches_every_signal(path: str, double_world: Path, tmp_path: Path) -> None:
    """The teacher is the student at temperature 2: only the temperature can make them differ."""
    folder = double_world / "student"
    teacher = LocalTeacher(str(folder), temperature=2.0, dtype="float64", top_k=288)
    objective: Objective = {
        "logprobs": PolicyGradient(log_ratio_transform=None),
        "hidden_states": DistributionMatching(),
        "top_k": DistributionMatching(TopK(ReverseKL(), 288, "teacher"), teacher_signal="top_k"),
    }[path]
    module = make_module(double_world, objective, "float64", {"math": teacher, "code": teacher})
    recorder = fit(tmp_path, module)
    rollouts = recorder.rollout_batches[0]
    mask = rollouts.response_mask
    ours, theirs = distributions(folder, rollouts), distributions(folder, rollouts, temperature=2.0)
    torch.testing.assert_close(rollouts.teacher_logprobs[mask], chosen(theirs, rollouts)[mask], atol=1e-6, rtol=0)
    kl = (ours.exp() * (ours - theirs)).sum(-1)
    if path == "logprobs":
        kl = chosen(ours - theirs, rollouts)
    assert float(kl[mask].mean()) > 0.05
    assert recorder.logged[0]["train/teacher_kl"] == pytest.approx(float(kl[mask].mean()), abs=1e-6)


def test_every_forward_of_a_step_runs_in_the_trainers_precision(world: Path, tmp_path: Path) -> None:
    """Rollout, score, preparation, update and validation: a matrix product under `bf16-mixed` gives bfloat16."""
    seen: dict[str, list[tuple[bool, torch.dtype]]] = {"student": [], "teacher": []}

    def watch(name: str, model: torch.nn.Module) -> None:
        def note(_: object, __: object, output: Tensor) -> None:
            seen[name].append((torch.is_grad_enabled(), output.dtype))

        projections = [layer for place, layer in model.named_modules() if place.endswith("q_proj")]
        assert projections
        projections[0].register_forward_hook(note)

    class Watched(OPDModule):
        def configure_model(self) -> None:
            super().configure_model()
            watch("student", self.language_model.model)
            math = self.teachers["math"]
            assert isinstance(math, LocalTeacher)
            watch("teacher", math.generator())

    objective = PolicyGradient(KLToGo(), LeaveOneOut())  # its returns need a forward before the update
    module = make_module(world, objective, kind=Watched)
    data = {"sampling": Sampling(max_new_tokens=3, stop_token_ids=(0,))}
    fit(tmp_path, module, data=data, precision="bf16-mixed", limit_val_batches=1, num_sanity_val_steps=1)
    assert {dtype for calls in seen.values() for _, dtype in calls} == {torch.bfloat16}
    tokens, proof, preparation = 3 + 3, 1, 1
    probe = 2  # of each model, once: whether it needs a mask
    assert [has_graph for has_graph, _ in seen["student"]] == [False] * (tokens + probe + proof + preparation) + [True]
    assert len(seen["teacher"]) == probe + 2


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_the_sampler_and_the_training_forward_agree_in_any_precision(
    precision: str, world: Path, tmp_path: Path
) -> None:
    """Mean gap in nats per token; float32 rollouts under a bfloat16 step are off by three times as much."""
    gaps: list[float] = []

    class Compare(OPDModule):
        def compute_advantages(self, batch: RolloutBatch, student: StudentForward) -> Tensor:
            gaps.append(float((student.logprobs.detach() - batch.rollout_logprobs)[batch.response_mask].abs().mean()))
            return super().compute_advantages(batch, student)

    fit(tmp_path, make_module(world, kind=Compare), precision=precision, data={"prompts_per_batch": 12})
    assert gaps[0] < {"32-true": 1e-5, "bf16-mixed": 7e-3}[precision]


def test_dropout_acts_nowhere_while_distilling(world: Path, tmp_path: Path) -> None:
    """Not in the update either, which learns from the very log-probs with which the student generated."""
    gaps: list[float] = []

    class Watched(OPDModule):
        def configure_student(self) -> torch.nn.Module:
            student = super().configure_student()
            for name, module in student.named_modules():
                if name.endswith("self_attn"):
                    vars(module)["attention_dropout"] = 0.5
            return student

        def compute_advantages(self, batch: RolloutBatch, student: StudentForward) -> Tensor:
            assert self.loaded_student.training
            gaps.append(float((student.logprobs.detach() - batch.rollout_logprobs)[batch.response_mask].abs().max()))
            return super().compute_advantages(batch, student)

    fit(tmp_path, make_module(world, kind=Watched))
    assert gaps[0] < 1e-4


def test_dropout_of_an_adapter_is_refused_while_distilling(world: Path) -> None:
    with pytest.raises(ValueError, match=r"`student.lora.dropout` must be 0 while distilling, got 0.5"):
        make_module(world, lora=Lora(rank=4, dropout=0.5))


def test_the_learning_rate_moves_with_every_optimiser_step(world: Path, tmp_path: Path) -> None:
    """Not with every epoch, nor with every micro-batch."""
    rates: list[float] = []

    class Rates(Recorder):
        def on_before_optimizer_step(
            self, trainer: object, pl_module: object, optimizer: torch.optim.Optimizer
        ) -> None:
            rates.append(optimizer.param_groups[0]["lr"])

    module = make_module(world)
    module._lr_scheduler = lambda optimizer: torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    trainer = make_trainer(tmp_path, Rates(), max_steps=4, accumulate_grad_batches=2)
    trainer.fit(module, make_data(sampling=Sampling(max_new_tokens=2)))
    assert rates == pytest.approx([0.01, 0.005, 0.0025, 0.00125])
