from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from lightning_opd import functional
from lightning_opd.functional.advantages import AdvantageEstimator, Immediate
from lightning_opd.functional.divergences import ReverseKL
from lightning_opd.functional.logprobs import token_logprobs
from lightning_opd.functional.policy_losses import Reinforce
from tests.implementations import implementations

every_estimator = pytest.mark.parametrize("estimator", implementations(AdvantageEstimator, functional))

VOCAB, HORIZON = 4, 3
RESPONSE = torch.tensor([[False, True, True, True]])


def random_rows(dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    mask = torch.tensor([[0, 1, 1, 1, 0], [0, 0, 1, 1, 1], [0, 1, 0, 1, 0]], dtype=torch.bool)
    return {
        "log_ratio": torch.randn(3, 5).to(dtype),
        "response_mask": mask,
        "kl": torch.rand(3, 5).to(dtype),
        "group_ids": torch.tensor([0, 0, 1]),
    }


@every_estimator
def test_advantages_are_detached_and_zero_outside_the_response(estimator: AdvantageEstimator) -> None:
    rows = random_rows()
    rows["log_ratio"].requires_grad_()
    advantages = estimator(**rows)
    assert advantages.shape == rows["log_ratio"].shape
    assert not advantages.requires_grad
    assert not advantages[~rows["response_mask"]].any()
    assert advantages[rows["response_mask"]].all()


@every_estimator
@pytest.mark.parametrize("garbage", [torch.inf, -torch.inf, torch.nan])
def test_what_lies_outside_the_response_changes_nothing(estimator: AdvantageEstimator, garbage: float) -> None:
    rows = random_rows()
    expected = estimator(**rows)
    outside = ~rows["response_mask"]
    spoilt = rows | {name: rows[name].masked_fill(outside, garbage) for name in ("log_ratio", "kl")}
    assert torch.equal(estimator(**spoilt), expected)


@every_estimator
def test_padding_on_either_side_changes_nothing(estimator: AdvantageEstimator) -> None:
    rows = random_rows()
    expected = estimator(**rows)
    padded = {name: torch.nn.functional.pad(x, (2, 3)) if x.ndim == 2 else x for name, x in rows.items()}
    assert torch.equal(estimator(**padded)[:, 2:-3], expected)


@every_estimator
def test_rows_do_not_see_each_other(estimator: AdvantageEstimator) -> None:
    rows = random_rows()
    order = torch.tensor([2, 0, 1])
    torch.testing.assert_close(estimator(**{name: x[order] for name, x in rows.items()}), estimator(**rows)[order])
    alone = estimator(**{name: x[1:2] for name, x in rows.items()})
    torch.testing.assert_close(alone, estimator(**rows)[1:2])


@every_estimator
def test_a_teacher_equal_to_the_student_gives_zero(estimator: AdvantageEstimator) -> None:
    rows = random_rows()
    rows |= {"log_ratio": torch.zeros_like(rows["log_ratio"]), "kl": torch.zeros_like(rows["kl"])}
    assert not estimator(**rows).any()


@every_estimator
def test_values_are_subtracted_inside_the_response(estimator: AdvantageEstimator) -> None:
    rows = random_rows()
    values = torch.randn(3, 5, dtype=torch.float64)
    expected = torch.where(rows["response_mask"], estimator(**rows) - values, 0.0)
    torch.testing.assert_close(estimator(**rows, values=values), expected)


@every_estimator
def test_an_all_masked_batch_gives_zeros(estimator: AdvantageEstimator) -> None:
    rows = random_rows()
    rows["response_mask"] = torch.zeros_like(rows["response_mask"])
    assert not estimator(**rows).any()


@every_estimator
def test_a_response_of_one_token_gets_its_own_log_ratio(estimator: AdvantageEstimator) -> None:
    mask = torch.tensor([[False, True, False]])
    advantages = estimator(torch.tensor([[5.0, -2.0, 7.0]]), mask, kl=torch.ones(1, 3), group_ids=torch.tensor([0]))
    assert advantages.tolist() == [[0.0, -2.0, 0.0]]


@every_estimator
@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_advantages_are_computed_in_at_least_float32(
    estimator: AdvantageEstimator, dtype: torch.dtype, expected: torch.dtype
) -> None:
    assert estimator(**random_rows(dtype)).dtype == expected


def test_immediate_is_the_log_ratio_itself() -> None:
    log_ratio = torch.tensor([[3.0, -torch.inf, 0.5, -1.0]])
    mask = torch.tensor([[True, False, True, True]])
    assert Immediate()(log_ratio, mask).tolist() == [[3.0, 0.0, 0.5, -1.0]]


@pytest.fixture
def tabular() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """All responses of three tokens over four, and a student's and a teacher's logits after every prefix."""
    num_states = sum(VOCAB**t for t in range(HORIZON))
    student = torch.randn(num_states, VOCAB, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(num_states, VOCAB, dtype=torch.float64)
    responses = torch.tensor(list(itertools.product(range(VOCAB), repeat=HORIZON)))
    token_ids = torch.nn.functional.pad(responses, (1, 0))
    states = torch.zeros_like(token_ids)  # the state before token t + 1, numbered breadth first
    for t in range(1, HORIZON):
        states[:, t] = states[:, t - 1] * VOCAB + responses[:, t - 1] + 1
    return student, teacher, token_ids, states


def test_immediate_has_the_gradient_of_the_reverse_kl_at_the_visited_states(
    tabular: tuple[Tensor, Tensor, Tensor, Tensor],
) -> None:
    student, teacher, token_ids, states = tabular
    mask = RESPONSE.expand(len(token_ids), -1)
    logprobs = token_logprobs(student[states], token_ids)
    probability = logprobs.sum(-1).exp().detach()
    log_ratio = token_logprobs(teacher[states], token_ids) - logprobs
    losses = Reinforce()(logprobs, logprobs.detach(), Immediate()(log_ratio, mask))
    (policy_gradient,) = torch.autograd.grad((probability[:, None] * losses).sum(), student)

    kl = ReverseKL()(student, teacher)[states[:, :-1]]  # the state distribution held fixed by `probability`
    (kl_gradient,) = torch.autograd.grad((probability[:, None] * kl).sum(), student)
    assert kl_gradient.abs().max() > 0.01
    torch.testing.assert_close(policy_gradient, kl_gradient, rtol=0, atol=1e-12)


@every_estimator
def test_a_wrong_value_leaves_the_expected_gradient_exact(
    estimator: AdvantageEstimator, tabular: tuple[Tensor, Tensor, Tensor, Tensor]
) -> None:
    student, teacher, token_ids, states = tabular
    mask = RESPONSE.expand(len(token_ids), -1)
    logprobs = token_logprobs(student[states], token_ids)
    probability = logprobs.sum(-1).exp().detach()
    log_ratio = token_logprobs(teacher[states], token_ids) - logprobs
    kl = torch.nn.functional.pad(ReverseKL()(student, teacher)[states[:, :-1]], (1, 0)).detach()
    wrong = torch.nn.functional.pad(torch.randn(len(student), dtype=torch.float64)[states[:, :-1]], (1, 0))

    def expected_gradient(values: Tensor | None) -> Tensor:
        advantages = estimator(log_ratio, mask, kl=kl, group_ids=torch.arange(len(token_ids)), values=values)
        losses = probability[:, None] * Reinforce()(logprobs, logprobs.detach(), advantages)
        return torch.autograd.grad(losses.sum(), student, retain_graph=True)[0]

    torch.testing.assert_close(expected_gradient(wrong), expected_gradient(None), rtol=0, atol=1e-12)
