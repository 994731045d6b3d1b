"""A learned value of the student's states, to subtract from the policy gradient's returns."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from typing_extensions import override

from lightning_opd.errors import ConfigError
from lightning_opd.functional.logprobs import promote


class Critic(nn.Module):
    """V(s_t): the estimator's expected return from the state before token t on, in nats.

    With `KLToGo` it learns minus the KL of the later tokens. V as the baseline makes Theorem 1 (v)
    practical: the exact gradient at nearly the immediate estimator's variance. A wrong V costs
    variance and leaves the gradient exact, since V does not depend on the token.

    A small head reads the student's detached states. Its loss changes nothing else, and its gradient is
    clipped apart from the student's. The values of a rollout batch are computed before its first update.
    Logs `train/explained_variance` (of each micro-batch; 1 is perfect, below 0 worse than a constant) and
    `train/value_loss` (nats²). `Immediate` does not need it: its return is one token's log-ratio.

    Args:
        width: Neurons of the hidden layer.
        lr: Learning rate, in the optimiser of the student.
        max_norm: Largest norm of the critic's gradient.

    Reference:
        Schulman et al., High-dimensional continuous control using generalized advantage estimation,
        arXiv 1506.02438 (2016), section 5; Liu, Fu, Shen, Jiang, On-policy distillation in model merging (2026),
        Theorem 1 (v); `.github/THEORY.md`, section 2.
    """

    def __init__(self, width: int = 64, lr: float = 1e-3, max_norm: float = 1.0) -> None:
        """Check the numbers; `build` makes the layers when the student's width is known."""
        super().__init__()
        for name, value in (("width", width), ("lr", lr), ("max_norm", max_norm)):
            if not 0 < value < math.inf:
                msg = f"`{name}` of the critic must be positive, got {value}."
                raise ConfigError(msg)
        self.width, self.lr, self.max_norm = width, lr, max_norm
        self.head: nn.Module | None = None

    def build(self, hidden_size: int, dtype: torch.dtype, device: torch.device) -> None:
        """Make the layers; the last one starts at zero, so that V does too."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # every rank makes the same one
            first, last = nn.Linear(hidden_size, self.width), nn.Linear(self.width, 1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        layers = nn.Sequential(nn.LayerNorm(hidden_size), first, nn.GELU(), last)  # states can be large: norm them
        self.head = layers.to(device=device, dtype=dtype)

    @override
    def forward(self, states: Float[Tensor, "batch time hidden"]) -> Float[Tensor, "batch time"]:
        """Return V at every state, in nats; no gradient reaches the states."""
        if self.head is None:
            msg = "The critic has no layers yet; call `build` first."
            raise RuntimeError(msg)
        values: Tensor = self.head(promote(states.detach())).squeeze(-1)
        return values


def value_loss(
    values: Float[Tensor, "batch time"],
    targets: Float[Tensor, "batch time"],
    mask: Bool[Tensor, "batch time"],
    num_active_tokens: Float[Tensor, ""],
) -> tuple[Float[Tensor, ""], dict[str, tuple[Tensor, Tensor]]]:
    """Return ½ mean (V − target)² over all response tokens of the step, and what to log."""
    errors = torch.where(mask, values - targets, 0.0)
    loss = 0.5 * errors.square().sum() / num_active_tokens.clamp(min=1)
    count = mask.sum().clamp(min=1)
    centred = torch.where(mask, targets - torch.where(mask, targets, 0.0).sum() / count, 0.0).detach().double()
    total, residual = centred.square().sum(), errors.detach().double().square().sum()
    metrics = {"explained_variance": (total - residual, total), "value_loss": (0.5 * residual, count.double())}
    return loss, metrics
