"""A student that is a Markov chain near its teacher: how the variance of a gradient grows with the horizon."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_opd.functional.advantages import (
    AdvantageEstimator,
    FullTrajectory,
    Immediate,
    KLToGo,
    LogRatioToGo,
)

ESTIMATORS: Mapping[str, tuple[AdvantageEstimator, bool]] = {
    "immediate": (Immediate(), False),
    "KL-to-go, exact value": (KLToGo(), True),
    "to-go, exact value": (LogRatioToGo(), True),
    "to-go": (LogRatioToGo(), False),
    "full trajectory": (FullTrajectory(), False),
    "KL-to-go": (KLToGo(), False),
}
"""Name → (estimator, whether the exact value is subtracted)."""


@dataclass(frozen=True)
class Rollouts:
    """Sampled walks; the token is the next state.

    Args:
        states: Where token t was chosen, `[rollouts, time]`.
        token_ids: Which state followed, `[rollouts, time]`.
        log_ratio: log T − log π of each token in nats.
        kl: KL(π ‖ T) at each state in nats.
        values: Exact expectation of the log-ratio-to-go at each state in nats.
    """

    states: Tensor
    token_ids: Tensor
    log_ratio: Tensor
    kl: Tensor
    values: Tensor


@dataclass(frozen=True)
class MarkovToy:
    """Two transition matrices over a few states, as log-probs `[state, next state]`."""

    student: Tensor
    teacher: Tensor

    @classmethod
    def draw(cls, generator: torch.Generator, num_states: int = 8, distance: float = 0.3) -> MarkovToy:
        """Draw a teacher at random and a student near it.

        Args:
            generator: Source of randomness.
            num_states: Size of the state space and the vocabulary.
            distance: Standard deviation of the student's logits around the teacher's.
        """
        teacher, noise = torch.randn(2, num_states, num_states, dtype=torch.float64, generator=generator)
        return cls((teacher + distance * noise).log_softmax(-1), teacher.log_softmax(-1))

    def sample(self, num_rollouts: int, horizon: int, generator: torch.Generator) -> Rollouts:
        """Let the student walk."""
        state = torch.randint(len(self.student), (num_rollouts,), generator=generator)
        walk = [state]
        for _ in range(horizon):
            state = torch.multinomial(self.student.exp()[state], 1, generator=generator).squeeze(-1)
            walk.append(state)
        path = torch.stack(walk, -1)
        states, token_ids = path[:, :-1], path[:, 1:]
        kl = (self.student.exp() * (self.student - self.teacher)).sum(-1)
        values = [torch.zeros_like(kl)]  # from the end backwards
        for _ in range(horizon):
            values.append(self.student.exp() @ values[-1] - kl)
        by_time = torch.stack(values[:0:-1])
        return Rollouts(
            states,
            token_ids,
            (self.teacher - self.student)[states, token_ids],
            kl[states],
            by_time[torch.arange(horizon), states],
        )

    def gradient_variance(self, rollouts: Rollouts, estimator: AdvantageEstimator, has_values: bool = False) -> float:
        """Return the trace of the covariance, over rollouts, of Σ_t Â_t ∇log π(a_t|s_t) in the student's logits."""
        mask = torch.ones_like(rollouts.states, dtype=torch.bool)
        values = rollouts.values if has_values else None
        advantages = estimator(rollouts.log_ratio, mask, kl=rollouts.kl, values=values)
        size = len(self.student)
        cells = rollouts.states * size + rollouts.token_ids
        pushes = torch.zeros(len(mask), size**2, dtype=advantages.dtype).scatter_add(-1, cells, advantages)
        pushes = pushes.reshape(-1, size, size)
        gradients = pushes - pushes.sum(-1, keepdim=True) * self.student.exp()
        return gradients.var(0).sum().item()


def slope(horizons: Sequence[int], variances: Sequence[float]) -> float:
    """Return the least-squares slope of log variance against log horizon."""
    x, y = (torch.tensor(v, dtype=torch.float64).log() for v in (horizons, variances))
    x, y = x - x.mean(), y - y.mean()
    return ((x * y).sum() / x.square().sum()).item()
