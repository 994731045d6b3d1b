from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import pytest
import torch

from lightning_opd.functional.advantages import FullTrajectory, Immediate, KLToGo, LogRatioToGo
from lightning_opd.functional.baselines import StateKL
from lightning_opd.functional.divergences import ForwardKL, JensenShannon, ReverseKL
from lightning_opd.functional.log_ratio_transforms import Clip
from lightning_opd.functional.logprobs import shift_right, token_logprobs
from lightning_opd.functional.off_policy import TruncatedImportance
from lightning_opd.functional.policy_losses import PPOClip
from lightning_opd.functional.reductions import SequenceMean, TrajectorySum
from lightning_opd.functional.top_k import TopK
from lightning_opd.interfaces import Objective, StudentForward
from lightning_opd.objectives import DistributionMatching, Likelihood, OutcomeGradient, PolicyGradient
from lightning_opd.types import LinearHead, Prompt, ResponseStates, RolloutBatch, Signal, TeacherScores, Trajectory
from tests.world import collate

HIDDEN, VOCAB = 6, 11


class World:
    """Two teachers with heads of their own width, a student, and two rows each, all in float64."""

    def __init__(self, temperature: float = 1.0, *, same: bool = False) -> None:
        generator = torch.Generator().manual_seed(4)

        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        trajectories = [
            Trajectory(
                Prompt((), str(i), "t", "t"),
                (1, *range(2, 3 + n)),
                (False,) + (True,) * (n + 1),
                (0.0,) * (n + 2),
                "",
                is_truncated=False,
            )
            for i, n in enumerate((3, 1, 4, 2))
        ]
        cpu, names = torch.device("cpu"), ("a", "b")
        self.batch = collate(trajectories, [0, 1, 2, 3], [0, 1, 1, 0], names, temperature, 0, torch.float64, cpu)
        shape = self.batch.token_ids.shape
        self.hidden = normal(*shape, HIDDEN).requires_grad_()
        self.weight = normal(VOCAB, HIDDEN).requires_grad_()
        widths = (HIDDEN, HIDDEN) if same else (4, HIDDEN)
        self.teacher_weights = [self.weight.detach() if same else normal(VOCAB, width) for width in widths]
        states = self.hidden.detach() if same else normal(*shape, HIDDEN)
        self.teacher_logits = torch.zeros(*shape, VOCAB, dtype=torch.float64)
        for index, (weight, width) in enumerate(zip(self.teacher_weights, widths, strict=True)):
            rows = self.batch.teacher_ids == index
            self.teacher_logits[rows] = states[rows][..., :width] @ weight.T
        logprobs = torch.log_softmax(shift_right(self.teacher_logits) / temperature, -1)
        self.batch.teacher_logprobs = logprobs.gather(-1, self.batch.token_ids[..., None]).squeeze(-1)
        self.batch.teacher_scores = TeacherScores(
            self.batch.teacher_logprobs,
            self.batch.response_mask,
            hidden_states=self.stored(shift_right(states), widths),
            heads=tuple(LinearHead(weight, None, VOCAB) for weight in self.teacher_weights),
        )
        ours = token_logprobs(self.student_logits().detach(), self.batch.token_ids, temperature)
        self.batch.rollout_logprobs = torch.where(self.batch.response_mask, ours, 0.0)

    def stored(self, states: torch.Tensor, widths: Sequence[int]) -> ResponseStates:
        """Return each teacher's own states, of its own width."""
        stored = ResponseStates.empty(states.shape[:2], states.device)
        for index, width in enumerate(widths):
            rows = (self.batch.teacher_ids == index).nonzero().squeeze(-1)
            mask = self.batch.response_mask[rows]
            own = ResponseStates.of(states[rows][mask][:, :width], mask)
            stored = stored.with_teacher(rows, slice(None), own)
        return stored

    def set_heads(self, *heads: LinearHead | None) -> None:
        assert self.batch.teacher_scores is not None
        self.batch.teacher_scores = dataclasses.replace(self.batch.teacher_scores, heads=heads)

    def forward(self, batch: RolloutBatch | None = None) -> StudentForward:
        head = LinearHead(self.weight, None, VOCAB)
        return StudentForward(shift_right(self.hidden), head, batch or self.batch)

    def student_logits(self) -> torch.Tensor:
        return self.hidden @ self.weight.T

    def gradient(self, loss: torch.Tensor) -> torch.Tensor:
        grads = torch.autograd.grad(loss, (self.hidden, self.weight))
        return torch.cat([g.flatten() for g in grads])


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_policy_gradient_is_the_clipped_log_ratio_times_the_score(temperature: float) -> None:
    world = World(temperature)
    objective = PolicyGradient(log_ratio_transform=[Clip(0.8)])
    terms = objective.loss(world.batch, world.forward())
    logprobs = token_logprobs(world.student_logits(), world.batch.token_ids, temperature)
    ratio = world.batch.teacher_logprobs - logprobs.detach()
    mask = world.batch.response_mask
    expected = -(ratio.clamp(-0.8, 0.8) * logprobs)[mask].sum() / mask.sum()
    assert torch.allclose(world.gradient(terms.loss), world.gradient(expected), atol=1e-12)
    total, count = terms.metrics["transformed"]
    assert total / count == pytest.approx(float((ratio.abs() > 0.8)[mask].double().mean()))
    total, count = terms.metrics["teacher_kl/b"]
    rows = mask & (world.batch.teacher_ids == 1)[:, None]
    assert total / count == pytest.approx(float(-ratio[rows].mean()))


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_distribution_matching_is_the_mean_divergence_of_each_rows_own_teacher(temperature: float) -> None:
    world = World(temperature)
    terms = DistributionMatching().loss(world.batch, world.forward())
    mask = world.batch.response_mask
    student, teacher = (shift_right(x) / temperature for x in (world.student_logits(), world.teacher_logits))
    expected = ReverseKL()(student, teacher)[mask].sum() / mask.sum()
    assert float(terms.loss.detach()) == pytest.approx(float(expected.detach()), abs=1e-12)
    assert torch.allclose(world.gradient(terms.loss), world.gradient(expected), atol=1e-12)


def test_a_teachers_own_temperature_moves_the_fixed_point() -> None:
    """At z_student = (sampling temperature / teacher temperature) · z_teacher the loss is zero."""
    world = World(temperature=0.7, same=True)
    world.set_heads(*(LinearHead(weight, None, VOCAB, temperature=1.4) for weight in world.teacher_weights))
    shifted = dataclasses.replace(world.forward(), head=LinearHead(world.weight * 0.5, None, VOCAB))
    assert float(DistributionMatching().loss(world.batch, shifted).loss.detach()) == pytest.approx(0, abs=1e-12)
    assert float(DistributionMatching().loss(world.batch, world.forward()).loss.detach()) > 0.01


def objectives() -> list[Objective]:
    """Every distilling objective, and those policy gradients that read more than one log-prob per token."""
    return [
        PolicyGradient(),
        PolicyGradient(Immediate(), StateKL()),
        PolicyGradient(LogRatioToGo(0.9), policy_loss=PPOClip()),
        PolicyGradient(KLToGo(), reduction=SequenceMean()),
        PolicyGradient(FullTrajectory(), off_policy=TruncatedImportance(), reduction=TrajectorySum()),
        DistributionMatching(),
        DistributionMatching(ForwardKL(), SequenceMean()),
        DistributionMatching(JensenShannon(), TrajectorySum()),
        DistributionMatching(TopK(ReverseKL(), 3, support="union")),
    ]


def label(objective: Objective) -> str:
    parts = (getattr(objective, name, None) for name in ("estimator", "baseline", "divergence"))
    return "-".join([type(objective).__name__, *(type(part).__name__ for part in parts if part is not None)])


@pytest.mark.parametrize("objective", objectives(), ids=label)
def test_student_equal_to_teacher_has_no_gradient(objective: Objective) -> None:
    world = World(same=True)
    loss = objective.loss(world.batch, world.forward()).loss
    assert float(world.gradient(loss).abs().max()) < 1e-12


@pytest.mark.parametrize("objective", objectives(), ids=label)
def test_masked_tokens_receive_no_gradient(objective: Objective) -> None:
    """Neither padding and prompts, nor what callbacks or the teacher exclude."""
    world = World()
    world.batch.distill_mask[0, 2] = False
    world.batch.aligned_mask[2, 3] = False
    world.batch.distill_weights[1] = 0.0
    loss = objective.loss(world.batch, world.forward()).loss
    (gradient,) = torch.autograd.grad(loss, world.hidden)
    counts = world.batch.response_mask & world.batch.distill_mask & world.batch.aligned_mask
    counts[1] = False
    predicts = torch.zeros_like(counts)
    predicts[:, :-1] = counts[:, 1:]
    assert (gradient[~predicts] == 0).all()
    assert (gradient[predicts].abs().sum(-1) > 0).all()


@pytest.mark.parametrize("objective", objectives(), ids=label)
def test_outcome_advantages_stay_where_the_distillation_is_masked(objective: Objective) -> None:
    world = World()
    world.batch.distill_weights = torch.zeros(4, dtype=torch.float64)
    world.batch.outcome_advantages = torch.tensor([1.0, -2.0, 0.0, 0.5], dtype=torch.float64)
    loss = objective.loss(world.batch, world.forward()).loss
    logprobs = token_logprobs(world.student_logits(), world.batch.token_ids)
    mask = world.batch.response_mask
    weighted = torch.where(mask, world.batch.outcome_advantages[:, None] * logprobs, 0.0)
    assert isinstance(objective, PolicyGradient | DistributionMatching | OutcomeGradient)
    expected = -objective.reduction(weighted, mask, world.batch.num_active_tokens, world.batch.num_trajectories)
    assert torch.allclose(world.gradient(loss), world.gradient(expected), atol=1e-12)


def test_likelihood_weighs_trajectories_and_leaves_masked_tokens_out() -> None:
    """A weight of 0 takes a row out, one of 2 counts it twice; the denominator stays."""
    world = World()
    world.batch.distill_weights = torch.tensor([2.0, 0.0, 0.5, 1.0], dtype=torch.float64)
    world.batch.distill_mask[0, 2] = False
    loss = Likelihood().loss(world.batch, world.forward()).loss
    logprobs = token_logprobs(world.student_logits(), world.batch.token_ids)
    counted = torch.where(world.batch.distill_mask, logprobs * world.batch.distill_weights[:, None], 0.0)
    expected = -counted.sum() / world.batch.response_mask.sum()
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), abs=1e-12)
    assert torch.allclose(world.gradient(loss), world.gradient(expected), atol=1e-12)


@pytest.mark.parametrize("objective", objectives(), ids=label)
@pytest.mark.parametrize("value", [-torch.inf, -1e4])
def test_impossible_tokens_give_finite_gradients(objective: Objective, value: float) -> None:
    world = World()
    world.batch.teacher_logprobs[0, 1:3] = value
    bias = torch.zeros(VOCAB, dtype=torch.float64)
    bias[3] = value
    world.set_heads(*(LinearHead(weight, bias, VOCAB) for weight in world.teacher_weights))
    loss = objective.loss(world.batch, world.forward()).loss
    assert torch.isfinite(world.gradient(loss)).all()


@pytest.mark.parametrize("objective", objectives(), ids=label)
def test_low_precision_states_give_float32_losses(objective: Objective) -> None:
    world = World()
    world.set_heads(*(LinearHead(weight.to(torch.bfloat16), None, VOCAB) for weight in world.teacher_weights))
    low = world.batch.map(lambda x: x.to(torch.bfloat16) if x.is_floating_point() else x)
    head = LinearHead(world.weight.to(torch.bfloat16), None, VOCAB)
    student = StudentForward(shift_right(world.hidden).to(torch.bfloat16), head, low)
    assert objective.loss(low, student).loss.dtype in (torch.float32, torch.float64)


def test_missing_signals_are_explained() -> None:
    world = World()
    for heads in ((None, None), ()):
        world.set_heads(*heads)
        with pytest.raises(ValueError, match=r"no output head.*PolicyGradient"):
            DistributionMatching().loss(world.batch, world.forward())
    world.batch.teacher_scores = None
    with pytest.raises(ValueError, match="hidden states"):
        DistributionMatching().loss(world.batch, world.forward())


def test_every_objective_says_what_it_requires() -> None:
    found = {type(objective) for objective in objectives()} | {OutcomeGradient, Likelihood}
    assert {cls for cls in Objective.__subclasses__() if cls.__module__.startswith("lightning_opd")} <= found
    for objective in objectives():
        assert objective.signals <= set(Signal)
        assert objective.signals
    assert not OutcomeGradient().signals
    assert not Likelihood().signals
    assert Signal.HIDDEN_STATES in PolicyGradient(KLToGo()).signals
    assert Signal.HIDDEN_STATES in PolicyGradient(baseline=StateKL()).signals
    assert Signal.HIDDEN_STATES not in PolicyGradient(LogRatioToGo()).signals
