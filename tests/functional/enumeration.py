"""A problem small enough to enumerate every response: expectations as exact sums in float64."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_opd.functional.log_ratio_transforms import LogRatioTransform, expected_log_ratio, shape
from lightning_opd.functional.policy_losses import Reinforce

STOP = 0


@dataclass(frozen=True)
class World:
    """Every response over a small vocabulary, and both models' logits after every prefix.

    Column 0 is the prompt. Responses end with the stop token or at the horizon, so their lengths differ.
    """

    student: Tensor  # [states, vocab], with gradient
    teacher: Tensor  # [states, vocab]
    reference: Tensor  # [states, vocab]
    token_ids: Tensor  # [responses, time]
    response_mask: Tensor  # [responses, time]
    states: Tensor  # [responses, time]: the state that chose token t

    @property
    def logprobs(self) -> Tensor:
        """Student log-prob of every token, 0 outside the response."""
        return self.of_tokens(torch.log_softmax(self.student, -1))

    @property
    def probability(self) -> Tensor:
        """The student's probability of every response, detached."""
        return self.logprobs.sum(-1).exp().detach()

    def of_tokens(self, table: Tensor) -> Tensor:
        """Look up a [states, vocab] table at every token, 0 outside the response."""
        return torch.where(self.response_mask, table[self.states, self.token_ids], 0.0)

    def of_states(self, table: Tensor) -> Tensor:
        """Look up a [states] table at every token, 0 outside the response."""
        return torch.where(self.response_mask, table[self.states], 0.0)

    def sequence_kl(self) -> Tensor:
        """KL(π(·|x) ‖ T(·|x)) in closed form, with gradient."""
        student, teacher = self.logprobs.sum(-1), self.of_tokens(torch.log_softmax(self.teacher, -1)).sum(-1)
        return (student.exp() * (student - teacher)).sum()

    def transformed(self, transforms: Sequence[LogRatioTransform]) -> tuple[Tensor, Tensor]:
        """Return the transformed log-ratio of every state and token, and its negative mean at every state."""
        tables = [torch.log_softmax(x, -1) for x in (self.student, self.teacher, self.reference)]
        return shape(transforms, *tables), expected_log_ratio(transforms, *tables)

    def gradient(self, objective: Tensor) -> Tensor:
        """Differentiate in the student's logits."""
        return torch.autograd.grad(objective, self.student)[0]

    def policy_gradient(self, advantages: Tensor) -> Tensor:
        """E Σ_t Â_t ∇log π(a_t|s_t), by the loss that training uses."""
        logprobs = self.logprobs
        losses = torch.where(self.response_mask, Reinforce()(logprobs, logprobs.detach(), advantages), 0.0)
        return self.gradient(-(self.probability[:, None] * losses).sum())


def make_world(vocab: int = 4, horizon: int = 3, seed: int = 0) -> World:
    """Draw both models at random."""
    generator = torch.Generator().manual_seed(seed)
    responses = {_until_stop(r) for r in itertools.product(range(vocab), repeat=horizon)}
    number: dict[tuple[int, ...], int] = {(): 0}
    for response in sorted(responses):
        for t in range(len(response)):
            number.setdefault(response[:t], len(number))
    rows = sorted(responses)
    token_ids = torch.zeros(len(rows), horizon + 1, dtype=torch.long)
    mask, states = torch.zeros_like(token_ids, dtype=torch.bool), torch.zeros_like(token_ids)
    for i, response in enumerate(rows):
        for t, token in enumerate(response):
            token_ids[i, t + 1], mask[i, t + 1], states[i, t + 1] = token, True, number[response[:t]]
    student, teacher, reference = torch.randn(3, len(number), vocab, dtype=torch.float64, generator=generator)
    return World(student.requires_grad_(), teacher, reference, token_ids, mask, states)


def _until_stop(response: tuple[int, ...]) -> tuple[int, ...]:
    return response[: response.index(STOP) + 1] if STOP in response else response
