"""Every objective on the whole training step: splits, several updates, other behaviour, references, refusals."""

from __future__ import annotations

import dataclasses
import inspect
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_opd.callbacks import FirstSpecialTokenMask, OutcomeReward
from lightning_opd.functional import off_policy
from lightning_opd.functional.advantages import AdvantageEstimator, FullTrajectory, Immediate, KLToGo, LogRatioToGo
from lightning_opd.functional.baselines import Baseline, BatchMean, LeaveOneOut, StateKL
from lightning_opd.functional.divergences import ReverseKL
from lightning_opd.functional.log_ratio_transforms import BoundedDifference, Clip, Extrapolation
from lightning_opd.functional.outcomes import GRPO
from lightning_opd.functional.policy_losses import PolicyLoss, PPOClip, TruncatedImportance
from lightning_opd.functional.reductions import Reduction, SequenceMean, TokenMean, TrajectorySum
from lightning_opd.functional.top_k import TopK
from lightning_opd.interfaces import Objective, OPDCallback, StudentForward
from lightning_opd.models import load_tokenizer
from lightning_opd.modules import OPDModule
from lightning_opd.objectives import DistributionMatching, OutcomeGradient, PolicyGradient
from lightning_opd.teachers import LocalTeacher
from lightning_opd.types import RolloutBatch, Sampling
from tests.replay import fit
from tests.world import STOPS, largest_difference, make_module

ESTIMATORS: tuple[AdvantageEstimator, ...] = (Immediate(), LogRatioToGo(0.9), FullTrajectory(), KLToGo())
BASELINES: tuple[Baseline | None, ...] = (None, LeaveOneOut(), BatchMean(), StateKL())


PAIRS = [pytest.param(e, b, id=f"{type(e).__name__}-{type(b).__name__}") for e in ESTIMATORS for b in BASELINES]
"""Every estimator beside every baseline."""


@pytest.mark.parametrize(
    ("estimator", "baseline"),
    [p if i % 5 == 0 else pytest.param(*p.values, id=str(p.id), marks=pytest.mark.slow) for i, p in enumerate(PAIRS)],
)
def test_the_split_changes_no_gradient_for_any_estimator_and_baseline(
    estimator: AdvantageEstimator, baseline: Baseline | None, double_world: Path, tmp_path: Path
) -> None:
    objective = PolicyGradient(estimator, baseline, log_ratio_transform=[Clip(3.0)], reduction=SequenceMean())
    runs = [
        fit(tmp_path, make_module(double_world, objective, "float64"), accumulate_grad_batches=parts)
        for parts in (1, 3)
    ]
    assert largest_difference(runs[0].gradients[0], runs[1].gradients[0]) < 1e-10
    assert max(float(g.abs().max()) for g in runs[0].gradients[0].values()) > 1e-4


@pytest.mark.parametrize("reduction", [TokenMean(), SequenceMean(), TrajectorySum()], ids=lambda r: type(r).__name__)
def test_the_split_changes_no_gradient_for_any_reduction(
    reduction: Reduction, double_world: Path, tmp_path: Path
) -> None:
    objective = DistributionMatching(TopK(ReverseKL(), 8, "union"), reduction)
    runs = [
        fit(tmp_path, make_module(double_world, objective, "float64"), accumulate_grad_batches=parts)
        for parts in (1, 3)
    ]
    assert largest_difference(runs[0].gradients[0], runs[1].gradients[0]) < 1e-10


def test_top_k_over_the_wire_equals_top_k_of_hidden_states(double_world: Path, tmp_path: Path) -> None:
    gradients = []
    for signal in ("hidden_states", "top_k"):
        objective = DistributionMatching(TopK(ReverseKL(), 16, "teacher"), teacher_signal=signal)
        recorder = fit(tmp_path, make_module(double_world, objective, "float64"))
        gradients.append(recorder.gradients[0])
        scores = recorder.rollout_batches[0].teacher_scores
        assert scores is not None
        assert (scores.hidden_states is None) == (signal == "top_k")
    assert largest_difference(*gradients) < 1e-10
    assert "train/top_k_overlap" not in recorder.logged[0]  # the teacher's head is not there to ask


def test_overlap_and_support_mass_are_logged(world: Path, tmp_path: Path) -> None:
    logged = fit(tmp_path, make_module(world, DistributionMatching(TopK(ReverseKL(), 8)))).logged[0]
    for name in ("top_k_overlap", "student_mass", "teacher_mass"):
        assert 0 <= logged[f"train/{name}"] <= 1
    same = OPDModule(
        make_module(world).student_config,
        {name: LocalTeacher(str(world / "student")) for name in ("math", "code")},
        DistributionMatching(TopK(ReverseKL(), 8)),
    )
    assert fit(tmp_path, same).logged[0]["train/top_k_overlap"] == 1.0


@pytest.mark.parametrize("loss", [TruncatedImportance(), PPOClip()], ids=lambda x: type(x).__name__)
def test_later_updates_of_a_rollout_batch_see_fresh_ratios_and_old_log_probs(
    loss: PolicyLoss, world: Path, tmp_path: Path
) -> None:
    """Before the first update the ratio is 1; after it the student has moved, and the advantages with it."""
    seen: list[float] = []

    class Watched(OPDModule):
        def compute_advantages(self, batch: RolloutBatch, student: StudentForward) -> torch.Tensor:
            assert batch.old_logprobs is not None
            mask, advantages = batch.response_mask, super().compute_advantages(batch, student)
            seen.append(float((student.logprobs.detach() - batch.old_logprobs)[mask].abs().max()))
            expected = (batch.teacher_logprobs - student.logprobs.detach()).clamp(-5, 5)[mask]
            assert torch.allclose(advantages[mask], expected, atol=1e-5)
            return advantages

    module = make_module(world, PolicyGradient(policy_loss=loss), kind=Watched)
    fit(tmp_path, module, data={"updates_per_batch": 2}, max_steps=4)
    first, second, third, fourth = seen
    assert max(first, third) < 1e-5
    assert min(second, fourth) > 1e-5


def test_a_nucleus_is_corrected_by_importance_weights(double_world: Path, tmp_path: Path) -> None:
    """Every token of a nucleus was likelier there than in the whole distribution: weights below 1."""
    data = {"sampling": Sampling(max_new_tokens=12, top_p=0.8, stop_token_ids=STOPS)}
    objective = PolicyGradient(off_policy=off_policy.TruncatedImportance())
    recorder = fit(tmp_path, make_module(double_world, objective, "float64"), data=data)
    assert 0 < recorder.logged[0]["train/off_policy_weight"] < 1
    assert recorder.logged[0]["train/engine_gap"] > 1e-3
    plain = fit(tmp_path, make_module(double_world, objective, "float64"))
    assert plain.logged[0]["train/off_policy_weight"] == pytest.approx(1.0, abs=1e-9)
    uncorrected = fit(tmp_path, make_module(double_world, PolicyGradient(), "float64"))
    assert largest_difference(plain.gradients[0], uncorrected.gradients[0]) < 1e-10


def test_extrapolation_starts_from_the_reference(double_world: Path, tmp_path: Path) -> None:
    """With the student itself as the reference r is the scale times the plain log-ratio."""

    def gradients(objective: Objective, reference: bool) -> dict[str, torch.Tensor]:
        module = make_module(double_world, objective, "float64")
        if reference:
            module.reference = LocalTeacher(str(double_world / "student"), dtype="float64")
        return fit(tmp_path, module).gradients[0]

    extrapolated = gradients(PolicyGradient(log_ratio_transform=Extrapolation(1.5)), reference=True)
    plain = gradients(PolicyGradient(log_ratio_transform=None), reference=False)
    assert largest_difference(extrapolated, {name: 1.5 * g for name, g in plain.items()}) < 1e-6  # norms are float32


def test_a_teacher_may_have_a_transform_of_its_own(double_world: Path, tmp_path: Path) -> None:
    def gradients(**settings: Any) -> dict[str, torch.Tensor]:
        objective = PolicyGradient(**settings)
        return fit(tmp_path, make_module(double_world, objective, "float64")).gradients[0]

    both = gradients(log_ratio_transform=Clip(0.5), teacher_log_ratio_transforms={"code": BoundedDifference(1.0)})
    clipped, bounded = gradients(log_ratio_transform=Clip(0.5)), gradients(log_ratio_transform=BoundedDifference(1.0))
    assert largest_difference(both, clipped) > 1e-6
    assert largest_difference(both, bounded) > 1e-6
    everywhere = gradients(
        log_ratio_transform=None, teacher_log_ratio_transforms={"code": Clip(0.5), "math": [Clip(9.0), Clip(0.5)]}
    )
    assert largest_difference(everywhere, clipped) < 1e-10


def test_outcome_rewards_alone_need_no_teacher(double_world: Path, tmp_path: Path) -> None:
    reward = OutcomeReward(advantage=GRPO())
    module = make_module(double_world, OutcomeGradient(), "float64")
    recorder = fit(tmp_path, OPDModule(module.student_config, {}, OutcomeGradient()), reward)
    rollouts = recorder.rollout_batches[0]
    assert rollouts.outcome_advantages.any()
    assert max(float(g.abs().max()) for g in recorder.gradients[0].values()) > 1e-4
    assert "train/teacher_kl" not in recorder.logged[0]
    with_teachers = fit(tmp_path, module, OutcomeReward(advantage=GRPO()))
    assert largest_difference(recorder.gradients[0], with_teachers.gradients[0]) == 0.0


def test_the_first_special_token_gets_no_distillation(world: Path, tmp_path: Path) -> None:
    ids = set(load_tokenizer(str(world / "student")).get_added_vocab().values())
    mask = FirstSpecialTokenMask()
    recorder = fit(tmp_path, make_module(world), mask, data={"sampling": Sampling(max_new_tokens=40)})
    rollouts = recorder.rollout_batches[0]
    dropped = rollouts.response_mask & ~rollouts.distill_mask
    assert dropped.any()
    assert {int(token) for token in rollouts.token_ids[dropped]} <= ids
    assert int(dropped.sum(1).max()) == 1
    assert recorder.logged[0]["train/special_token_masked"] == pytest.approx(
        float(dropped.sum() / rollouts.response_mask.sum())
    )
    with pytest.raises(ValueError, match=r"\['<nope>'\]"):
        fit(tmp_path, make_module(world), FirstSpecialTokenMask(["<nope>"]))


REFUSED: list[tuple[Objective, dict[str, Any], str]] = [
    (PolicyGradient(), {"updates_per_batch": 2}, "Reinforce does not correct.*PPOClip"),
    (PolicyGradient(), {"sampling": Sampling(top_p=0.9)}, "whole distribution.*TruncatedImportance"),
    (PolicyGradient(), {"sampling": Sampling(top_k=5)}, "`top_k`.*biases"),
    (PolicyGradient(), {"sampling": Sampling(min_p=0.1)}, "`min_p`.*biases"),
    (PolicyGradient(), {"sampling": Sampling(repetition_penalty=1.1)}, "`repetition_penalty`.*biases"),
    (PolicyGradient(teacher_log_ratio_transforms={"mth": None}), {}, r"names \['mth'\].*\['code', 'math'\]"),
    (PolicyGradient(log_ratio_transform=Extrapolation(1.2)), {}, "Set `model.reference`"),
    (OutcomeGradient(), {}, "OutcomeReward"),
    (PolicyGradient(baseline=LeaveOneOut()), {"samples_per_prompt": 1}, "compares the siblings of a prompt"),
    (PolicyGradient(), {"sampling": Sampling(temperature=0.0)}, "must be drawn"),
]


@pytest.mark.parametrize(("objective", "data", "said"), REFUSED, ids=[said[:20] for *_, said in REFUSED])
def test_settings_that_would_teach_something_else_are_refused(
    objective: Objective, data: dict[str, Any], said: str, world: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=said):
        fit(tmp_path, make_module(world, objective), data=data)


@pytest.mark.parametrize(
    ("objective", "wrong", "said"),
    [
        (PolicyGradient, ReverseKL(), "A KL value as the sampled token's advantage has an expected gradient of zero"),
        (DistributionMatching, Immediate(), r"differentiated as a loss \(k1\), has an expected gradient of zero"),
    ],
)
def test_losses_that_look_right_and_are_not_cannot_be_built(
    objective: type[Objective], wrong: object, said: str
) -> None:
    """The file is run anew, as users import it: in these tests types are checked first."""
    as_imported = runpy.run_path(inspect.getfile(objective))[objective.__name__]
    with pytest.raises(TypeError, match=said):
        as_imported(wrong)


def test_settings_that_cannot_be_right_cannot_be_built() -> None:
    with pytest.raises(ValueError, match=r"only the teacher's own top tokens.*support: teacher"):
        DistributionMatching(TopK(ReverseKL(), 4, "student"), teacher_signal="top_k")
    with pytest.raises(ValueError, match="hidden_states"):
        DistributionMatching(ReverseKL(), teacher_signal="top_k")
    with pytest.raises(ValueError, match="raw"):
        TopK(ReverseKL(), 4, correction="none")
    assert dataclasses.is_dataclass(PolicyGradient)


def test_later_updates_hold_the_outcome_of_distribution_matching_against_the_old_student(
    world: Path, tmp_path: Path
) -> None:
    seen: list[float] = []

    class Watched(OPDModule):
        def compute_advantages(self, batch: RolloutBatch, student: StudentForward) -> torch.Tensor:
            assert student.old_logprobs is not None
            seen.append(float((student.logprobs - student.old_logprobs).detach()[batch.response_mask].abs().max()))
            return super().compute_advantages(batch, student)

    module = make_module(world, DistributionMatching(policy_loss=PPOClip()), kind=Watched)
    fit(tmp_path, module, OutcomeReward(), data={"updates_per_batch": 2}, max_steps=2)
    assert seen[0] < 1e-5 < seen[1]
    with pytest.raises(ValueError, match="stale from the second update on"):
        fit(tmp_path, make_module(world, DistributionMatching()), OutcomeReward(), data={"updates_per_batch": 2})


def test_masked_tokens_are_no_part_of_other_rows_baselines(double_world: Path, tmp_path: Path) -> None:
    """Baselines are computed after the callbacks: a masked row's return is 0 for its siblings, too."""

    class Mask(OPDCallback):
        def on_rollout_end(self, trainer: object, module: object, rollouts: RolloutBatch) -> None:
            rollouts.distill_mask = rollouts.distill_mask & (torch.arange(len(rollouts)) % 2 == 0)[:, None]

    objective = PolicyGradient(LogRatioToGo(), LeaveOneOut(), log_ratio_transform=None)
    rollouts = fit(tmp_path, make_module(double_world, objective, "float64"), Mask()).rollout_batches[0]
    assert rollouts.baselines is not None
    kept, masked = rollouts.baselines[0::2], rollouts.baselines[1::2]  # siblings stand side by side
    assert not kept.any()
    assert masked.any()
