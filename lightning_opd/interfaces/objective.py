"""What turns a scored micro-batch and the student's forward into a loss."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lightning_opd.errors import ConfigError
from lightning_opd.functional.fused import Tokens, token_statistics
from lightning_opd.functional.fused_gradients import WeightsOf
from lightning_opd.functional.heads import HeadStates
from lightning_opd.functional.logprobs import promote
from lightning_opd.types import LinearHead, LossTerms, RolloutBatch, RunSettings, Signal

TokenWeights: TypeAlias = Callable[[Tensor], Tensor]
"""From log-probs `[batch, time]` to the gradient with which they come back, `[batch, time]`; a token's own from its own
log-prob only."""


@dataclass(frozen=True)
class StudentForward:
    """The student's forward pass over one micro-batch, with its graph.

    Args:
        hidden_states: States from which the head predicts token t (already on the token's axis).
        head: The student's output layer.
        batch: The micro-batch it was run on.
    """

    hidden_states: Float[Tensor, "batch time hidden"]
    head: LinearHead
    batch: RolloutBatch

    def at(self, rows: Int[Tensor, " positions"], columns: Int[Tensor, " positions"]) -> HeadStates:
        """Return the states at some positions, with the head that reads them."""
        return HeadStates(self.hidden_states[rows, columns], self.head, self.batch.temperature)

    def foresee(self, weights: Float[Tensor, "batch time"] | TokenWeights) -> None:
        """Say with which gradient each log-prob is expected to come back, up to one common factor.

        It saves a product with the output matrix if it comes before the first look at `logprobs`; a wrong forecast
        costs time only.

        Args:
            weights: The gradient; as a function where that of a token depends on its own log-prob.
        """
        self._forecast.append(weights)

    def tokens(self, rows: Int[Tensor, " positions"], columns: Int[Tensor, " positions"]) -> Tokens | None:
        """Return the tokens at some positions, whose log-probs `take` then spares a pass over the logits of their own.

        Returns:
            None where the log-probs are there already, or where these are not all response tokens.
        """
        if "_statistics" in vars(self) or len(rows) != int(self.batch.response_mask.sum()):
            return None
        return Tokens(self.batch.token_ids[rows, columns], self._weights(rows, columns))

    def take(
        self,
        rows: Int[Tensor, " positions"],
        columns: Int[Tensor, " positions"],
        logprobs: Float[Tensor, " positions"] | None,
    ) -> None:
        """Keep what was formed of `tokens`, if it was, as `logprobs`."""
        if logprobs is not None:
            found = logprobs.new_zeros(self.batch.response_mask.shape).index_put((rows, columns), logprobs)
            vars(self)["_statistics"] = found, None

    @cached_property
    def _forecast(self) -> list[Float[Tensor, "batch time"] | TokenWeights]:
        return []

    def _weights(
        self, rows: Int[Tensor, " positions"], columns: Int[Tensor, " positions"]
    ) -> Float[Tensor, " positions"] | WeightsOf | None:
        if not self._forecast:
            return None
        forecast, so_far = self._forecast[-1], promote(self.batch.rollout_logprobs).clone()
        if isinstance(forecast, Tensor):
            return forecast[rows, columns]

        def weights_of(positions: slice, values: Tensor) -> Tensor:
            where = rows[positions], columns[positions]
            so_far[where] = values.to(so_far.dtype)
            return forecast(so_far)[where]

        return weights_of

    @cached_property
    def _statistics(self) -> tuple[Float[Tensor, "batch time"], Float[Tensor, "batch time"] | None]:
        mask = self.batch.response_mask
        where = mask.nonzero(as_tuple=True)
        # entropies are for the logs of a training step: there they come with the log-probs
        in_graph = torch.is_grad_enabled()
        weights = self._weights(*where) if in_graph else None
        found = token_statistics(self.at(*where), self.batch.token_ids[where], weights, with_entropies=in_graph)
        logprobs, entropies = (None if x is None else x.new_zeros(mask.shape).index_put(where, x) for x in found)
        assert logprobs is not None
        return logprobs, entropies

    @property
    def logprobs(self) -> Float[Tensor, "batch time"]:
        """Log-prob of every response token in nats, with gradient; computed once."""
        return self._statistics[0]

    @property
    def old_logprobs(self) -> Float[Tensor, "batch time"]:
        """Log-probs in nats before the batch's first update, detached; the current ones if there is one update."""
        return self.logprobs.detach() if self.batch.old_logprobs is None else self.batch.old_logprobs

    @cached_property
    def entropies(self) -> Float[Tensor, "batch time"]:
        """Entropy of the distribution each response token was drawn from, in nats, detached."""
        if self._statistics[1] is not None:
            return self._statistics[1]
        mask = self.batch.response_mask
        where = mask.nonzero(as_tuple=True)
        with torch.no_grad():
            _, entropies = token_statistics(self.at(*where), self.batch.token_ids[where], with_entropies=True)
        assert entropies is not None
        return entropies.new_zeros(mask.shape).index_put(where, entropies)


BatchForward: TypeAlias = Callable[[Callable[[RolloutBatch, StudentForward], Tensor]], Tensor]
"""Runs the student over a whole rollout batch, part by part and without a graph: from what a function
makes of a part (`[rows, time]`) to the same of all rows (`[batch, time]`)."""


@dataclass(frozen=True)
class PrepareContext:
    """What `Objective.prepare` may use beside the rollout batch.

    Args:
        over_batch: Runs the student over all rows, as it is before the batch's first update.
        num_updates: Optimiser steps that the rollout batch serves.
        sum_over_ranks: Adds a tensor up over all data-parallel ranks.
    """

    over_batch: BatchForward
    num_updates: int
    sum_over_ranks: Callable[[Tensor], Tensor]


class Objective(ABC):
    """Turns a scored micro-batch and the student's forward into a loss."""

    @property
    @abstractmethod
    def signals(self) -> frozenset[Signal]:
        """What every teacher must answer for this objective; empty where it learns without teachers."""

    @property
    def needs_reference(self) -> bool:
        """Whether `reference_logprobs` of the batch must be there."""
        return False

    @property
    def needs_siblings(self) -> bool:
        """Whether it compares the responses to one prompt, of which there must be two or more."""
        return False

    def check(self, settings: RunSettings) -> None:
        """Refuse settings under which this objective would learn something else than it says.

        An override calls this one, too: by default there is no use for a critic.

        Raises:
            ValueError: With the setting and what to change, before anything runs.
        """
        if settings.has_critic:
            msg = (
                f"{type(self).__name__} has no use for a critic: it subtracts no value from a sum over tokens. Remove "
                "`model.critic`, or use `PolicyGradient` with `KLToGo` or `LogRatioToGo`."
            )
            raise ConfigError(msg)

    def prepare(self, rollouts: RolloutBatch, context: PrepareContext) -> None:
        """Store on a rollout batch what needs all its rows, after the callbacks and before the split; on every rank.

        By default the student's log-probs, with which later updates will be compared.
        """
        if context.num_updates > 1:
            rollouts.old_logprobs = context.over_batch(lambda part, student: student.logprobs)

    def state_kl(self, batch: RolloutBatch, student: StudentForward) -> Float[Tensor, "batch time"] | None:
        """Return −E_{a∼π}[transformed log-ratio] at every state in nats, detached; None where it is not needed."""
        return None

    def value_targets(self, batch: RolloutBatch, student: StudentForward) -> Float[Tensor, "batch time"]:
        """Return what a critic's V(s_t) is fitted to, in nats, detached; only where `check` lets a critic pass."""
        raise NotImplementedError

    @abstractmethod
    def advantages(self, batch: RolloutBatch, student: StudentForward) -> Float[Tensor, "batch time"]:
        """Return the detached factor of each token's log-prob gradient; row-local terms only."""

    @abstractmethod
    def loss(
        self,
        batch: RolloutBatch,
        student: StudentForward,
        advantages: Float[Tensor, "batch time"] | None = None,
    ) -> LossTerms:
        """Return the loss of a micro-batch and what to log.

        Args:
            batch: Scored rollouts.
            student: The forward pass to differentiate.
            advantages: Per-token advantages; by default those of `advantages`.
        """
