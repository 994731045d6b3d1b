"""Tensors in the order in which a training step makes them: sampled tokens, teacher scores, rollout batch, loss.

Every `[batch, time]` tensor keeps one convention: `x[b, t]` speaks about `token_ids[b, t]`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, NamedTuple, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lightning_opd.types.episodes import Trajectory
from lightning_opd.types.states import ResponseStates

Tokens = TypeVar("Tokens", bound="SampledTokens")


class Signal(Enum):
    """What an objective may ask of a teacher."""

    LOGPROBS = "logprobs"
    HIDDEN_STATES = "hidden_states"
    TOP_LOGPROBS = "top_logprobs"


@dataclass(frozen=True)
class LinearHead:
    """A language model's output layer: hidden states to logits.

    Args:
        weight: Output matrix `[vocab, hidden]`, or None where the states already are logits
            (models that reshape their logits after the matrix).
        bias: Output bias `[vocab]`, or None.
        vocab_size: Number of real tokens; padded rows above it are cut before any softmax.
        temperature: Divides this model's logits instead of the batch's temperature, if given.
        scale: Multiplies the product of states and matrix.
        soft_cap: Bounds the logits by soft_cap · tanh(logits / soft_cap), if given.
    """

    weight: Float[Tensor, "vocab hidden"] | None
    bias: Float[Tensor, " vocab"] | None
    vocab_size: int
    temperature: float | None = None
    scale: float = 1.0
    soft_cap: float | None = None

    def logits(self, states: Float[Tensor, "*shape hidden"]) -> Float[Tensor, "*shape vocab"]:
        """Return the logits of the real vocabulary at each state."""
        if self.weight is None:
            return states[..., : self.vocab_size]
        own = self.cut(self.vocab_size)
        assert own.weight is not None
        states = states.to(own.weight.dtype)  # some models keep float32 states beside bfloat16 weights
        return self.finish(torch.nn.functional.linear(states, own.weight, own.bias))

    def cut(self, vocab_size: int) -> LinearHead:
        """Return the head of the first `vocab_size` tokens at most, its matrix sliced once for many chunks."""
        size = min(vocab_size, self.vocab_size)
        weight, bias = (x if x is None or len(x) == size else x[:size] for x in (self.weight, self.bias))
        return dataclasses.replace(self, weight=weight, bias=bias, vocab_size=size)

    def finish(self, products: Float[Tensor, "*shape vocab"]) -> Float[Tensor, "*shape vocab"]:
        """Return the logits made of the products of states and matrix: scaled, then capped, in their own dtype."""
        if self.scale != 1:
            products = products * self.scale
        return products if self.soft_cap is None else torch.tanh(products / self.soft_cap) * self.soft_cap


class TokenTree(NamedTuple):
    """A prompt and several continuations of it.

    Args:
        token_ids: Tokens, each after the one before it in its own continuation.
        parents: Index of the token before each, always a smaller one; −1 for the first of all.
    """

    token_ids: Sequence[int]
    parents: Sequence[int]


@dataclass(kw_only=True)
class SampledTokens:
    """Sequences of tokens, padded on the right: all that a teacher needs to score them.

    Args:
        token_ids: Prompt, response and padding.
        attention_mask: True on real tokens.
        response_mask: True where the student generated the token; fixed from the rollout on.
        rollout_logprobs: Log-probs (nats) at which the tokens were sampled, 0 where they were not.
        teacher_ids: Index of the prompt's teacher in the sorted teacher names; -1 for none.
        temperature: Sampling temperature, also that of the student's and teacher's log-probs.
        trajectories: The episodes behind the rows; empty in a restored batch.
    """

    token_ids: Int[Tensor, "batch time"]
    attention_mask: Bool[Tensor, "batch time"]
    response_mask: Bool[Tensor, "batch time"]
    rollout_logprobs: Float[Tensor, "batch time"]
    teacher_ids: Int[Tensor, " batch"]
    temperature: float = 1.0
    trajectories: tuple[Trajectory, ...] = ()

    @staticmethod
    def from_sequences(
        token_ids: Sequence[Sequence[int]],
        response_masks: Sequence[Sequence[bool]],
        pad_token_id: int,
        dtype: torch.dtype,
        device: torch.device,
        *,
        logprobs: Sequence[Sequence[float]] | None = None,
        teacher_ids: Sequence[int] | None = None,
        temperature: float = 1.0,
        trajectories: Sequence[Trajectory] = (),
    ) -> SampledTokens:
        """Return sequences as one batch, padded on the right.

        Args:
            token_ids: Tokens of each row.
            response_masks: True on the tokens to score, one for each token.
            pad_token_id: Fills rows up.
            dtype: Of the log-probs.
            device: Where the batch will be used.
            logprobs: Sampling log-prob (nats) of each token; by default nothing was sampled.
            teacher_ids: Teacher of each row; by default the first.
            temperature: Of the log-probs.
            trajectories: The episodes behind the rows.
        """
        size = len(token_ids), max(map(len, token_ids), default=1)
        ids = torch.full(size, pad_token_id, dtype=torch.long)
        attention_mask, response_mask = torch.zeros(size, dtype=torch.bool), torch.zeros(size, dtype=torch.bool)
        sampled = torch.zeros(size, dtype=dtype)
        for row, (tokens, mask) in enumerate(zip(token_ids, response_masks, strict=True)):
            ids[row, : len(tokens)] = torch.tensor(tokens)
            attention_mask[row, : len(tokens)] = True
            response_mask[row, : len(tokens)] = torch.tensor(mask)
            if logprobs is not None:
                sampled[row, : len(tokens)] = torch.tensor(logprobs[row], dtype=dtype)
        return SampledTokens(
            token_ids=ids.to(device),
            attention_mask=attention_mask.to(device),
            response_mask=response_mask.to(device),
            rollout_logprobs=sampled.to(device),
            teacher_ids=torch.tensor([0] * size[0] if teacher_ids is None else list(teacher_ids), device=device).long(),
            temperature=temperature,
            trajectories=tuple(trajectories),
        )

    def __len__(self) -> int:
        """Return the number of trajectories."""
        return int(self.token_ids.shape[0])

    def span(self, rows: Int[Tensor, " rows"]) -> slice:
        """Return the columns that hold any token of the given rows."""
        used = self.attention_mask[rows].any(dim=0).nonzero()
        return slice(int(used[0]), int(used[-1]) + 1) if len(used) else slice(0, 1)

    def select(self: Tokens, rows: Int[Tensor, " rows"]) -> Tokens:
        """Return the given rows as a batch of their own, cut to the columns they use."""
        columns = self.span(rows)

        def cut(value: Tensor) -> Tensor:
            return value[rows][:, columns] if value.ndim >= 2 else value[rows]

        batch = self.map(cut)
        batch.trajectories = tuple(self.trajectories[row] for row in rows.tolist()) if self.trajectories else ()
        return batch

    def map(self: Tokens, function: Callable[[Tensor], Tensor]) -> Tokens:
        """Return a copy with a function applied to every tensor that has a batch axis."""

        def apply(value: object) -> object:
            if isinstance(value, Tensor) and value.ndim >= 1:
                return function(value)
            if isinstance(value, TeacherScores):
                return dataclasses.replace(value, **_map_fields(value, apply))
            return value.map(function) if isinstance(value, ResponseStates) else value

        return dataclasses.replace(self, **_map_fields(self, apply))


@dataclass(frozen=True)
class TeacherScores:
    """A teacher's answer about every token, on the student's time axis.

    Args:
        logprobs: Teacher log-prob of each token in nats; NaN on aligned tokens where nothing asked for them.
        aligned_mask: True where teacher and student speak about the same event.
        top_ids: Teacher's k likeliest token ids at each position, or None.
        top_logprobs: Their log-probs in nats, or None.
        hidden_states: States from which the teachers' heads predict the aligned response tokens, or None.
        heads: Output layers that turn the states into logits, in the order of `teacher_ids`; None
            for a teacher without one. Never saved with the scores.
        metrics: What the teacher measured, `name → (sum, count)`; the same names on every rank.
    """

    logprobs: Float[Tensor, "batch time"]
    aligned_mask: Bool[Tensor, "batch time"]
    top_ids: Int[Tensor, "batch time k"] | None = None
    top_logprobs: Float[Tensor, "batch time k"] | None = None
    hidden_states: ResponseStates | None = None
    heads: tuple[LinearHead | None, ...] = ()
    metrics: Mapping[str, tuple[Tensor, Tensor]] = field(default_factory=dict)


@dataclass(kw_only=True)
class RolloutBatch(SampledTokens):
    """Sampled tokens with their rewards and scores: one rollout batch, or one micro-batch cut from it.

    Args:
        teacher_logprobs: Log-prob of each token under the prompt's own teacher, in nats; NaN if nobody asks for it.
        aligned_mask: True where teacher and student speak about the same event.
        distill_mask: True where the distillation term may act; callbacks may clear it.
        distill_weights: Weight of the distillation term per trajectory; callbacks may change it.
        outcome_advantages: Advantage from outcome rewards per trajectory; callbacks may set it.
        rewards: The task's reward per trajectory.
        group_ids: Equal for siblings of one prompt.
        is_truncated: Whether a length limit ended the trajectory.
        has_format_error: Whether any format rule is broken.
        num_active_tokens: Response tokens of this optimiser step over all micro-batches and
            ranks: the one denominator. Masks, weights and clips never change it.
        num_trajectories: Trajectories of this optimiser step over all micro-batches and ranks.
        teacher_names: Sorted names that `teacher_ids` index.
        teacher_scores: All that the teachers answered, or None where there are none.
        metrics: What the rollout batch measured, `name → (sum, count)`; on its first micro-batch only.
        is_off_policy: Whether a data set or a teacher generated the responses.
        old_logprobs: Student log-probs before the batch's first update, where several updates follow.
        reference_logprobs: Log-probs under a reference model, where there is one.
        baselines: Per-token baselines computed on the whole rollout batch, where there are any.
        kl: −E_{a∼π}[transformed log-ratio] in nats at the state that chose token t, where the estimator
            needs it: the plain KL from student to teacher if nothing is transformed.
    """

    teacher_logprobs: Float[Tensor, "batch time"]
    aligned_mask: Bool[Tensor, "batch time"]
    distill_mask: Bool[Tensor, "batch time"]
    distill_weights: Float[Tensor, " batch"]
    outcome_advantages: Float[Tensor, " batch"]
    rewards: Float[Tensor, " batch"]
    group_ids: Int[Tensor, " batch"]
    is_truncated: Bool[Tensor, " batch"]
    has_format_error: Bool[Tensor, " batch"]
    num_active_tokens: Float[Tensor, ""]
    num_trajectories: Float[Tensor, ""]
    teacher_names: tuple[str, ...] = ()
    teacher_scores: TeacherScores | None = None
    metrics: Mapping[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    is_off_policy: bool = False
    old_logprobs: Float[Tensor, "batch time"] | None = None
    reference_logprobs: Float[Tensor, "batch time"] | None = None
    baselines: Float[Tensor, "batch time"] | None = None
    kl: Float[Tensor, "batch time"] | None = None


@dataclass(frozen=True)
class LossTerms:
    """An objective's answer for one micro-batch.

    Args:
        loss: Scalar with a graph, already divided by the global denominator.
        metrics: `name → (sum, count)`, detached scalars; the module sums both over micro-batches
            and ranks and logs their quotient.
    """

    loss: Float[Tensor, ""]
    metrics: Mapping[str, tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class RunSettings:
    """The settings of a run that decide which objectives are right under them.

    Args:
        updates_per_batch: Optimiser steps per rollout batch.
        draws_from_student: Whether tokens come from the student's whole distribution; not under a
            nucleus, nor from an engine whose log-probs differ from the trainer's.
        off_policy_fraction: Fraction of rollout batches whose responses were generated by a data set or a teacher.
        has_outcome: Whether a callback adds outcome advantages.
        has_reference: Whether a reference model is there.
        has_critic: Whether a critic learns the baseline.
        teacher_names: Sorted names of the teachers.
    """

    updates_per_batch: int = 1
    draws_from_student: bool = True
    off_policy_fraction: float = 0.0
    has_outcome: bool = False
    has_reference: bool = False
    has_critic: bool = False
    teacher_names: tuple[str, ...] = ()


def _map_fields(instance: SampledTokens | TeacherScores, function: Callable[[object], object]) -> dict[str, Any]:
    return {f.name: function(getattr(instance, f.name)) for f in dataclasses.fields(instance)}
