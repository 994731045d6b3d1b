"""What travels along the training step: prompts, samples, trajectories, rollout batches and teacher scores.

Every `[batch, time]` tensor keeps one convention: `x[b, t]` speaks about `token_ids[b, t]`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, TypeAlias

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lightning_opd.errors import ConfigError

Message: TypeAlias = Mapping[str, object]
"""One chat message: at least `role` and `content`. A chat's first message may carry `tools`, the JSON
schemas that its template shows."""

Messages: TypeAlias = Sequence[Message]


@dataclass(frozen=True)
class Prompt:
    """One question of a task.

    Args:
        messages: The chat so far; the student generates the next assistant message.
        key: Hash of the question; equal keys are the same question in every run and model.
        teacher: Name of the teacher that scores this prompt.
        domain: Name under which results are reported.
        columns: Everything else the row carries, for example the right answer.
    """

    messages: Messages
    key: str
    teacher: str
    domain: str
    columns: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Sampling:
    """How the student generates: the draw of a token, and how far it may go.

    Args:
        temperature: Softmax temperature; 0 is greedy (log-probs are then those at temperature 1).
        top_p: Nucleus mass kept; 1 keeps the whole vocabulary.
        max_new_tokens: Longest reply in tokens, the stop token included.
        max_turns: Most replies of one episode; one that wants more ends truncated.
        max_episode_tokens: Longest episode in tokens, everything included; by default what the
            student has positions for. One that has no room for a whole reply ends truncated.
        stop_token_ids: Tokens that end a response; the data module fills in the tokenizer's.
        vocab_size: Ids from here on (padded rows of the output layer) are never drawn; the data
            module fills in the tokenizer's.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    max_new_tokens: int = 64
    max_turns: int = 16
    max_episode_tokens: int | None = None
    stop_token_ids: tuple[int, ...] = ()
    vocab_size: int | None = None

    def __post_init__(self) -> None:
        """Refuse values no engine can draw with."""
        if self.temperature < 0:
            msg = f"`temperature` must be 0 (greedy) or positive, got {self.temperature}."
            raise ConfigError(msg)
        if not 0 < self.top_p <= 1:
            msg = f"`top_p` must lie in (0, 1], got {self.top_p}."
            raise ConfigError(msg)
        for name in ("max_new_tokens", "max_turns", "max_episode_tokens"):
            limit = getattr(self, name)
            if limit is not None and limit < 1:
                msg = f"`{name}` must be at least 1, got {limit}."
                raise ConfigError(msg)


@dataclass(frozen=True)
class Sample:
    """One response as an engine drew it.

    Args:
        token_ids: Response tokens as sampled, the stop token included.
        logprobs: Log-prob of each token under the distribution it was drawn from, in nats.
        is_truncated: Whether the length limit ended it instead of a stop token.
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    is_truncated: bool


@dataclass(frozen=True)
class Turn:
    """One reply of an episode, and the chat it answers.

    Args:
        messages: The whole chat before the reply, earlier replies and tools' answers included.
        start: Where the reply begins in the trajectory's `token_ids`.
        end: Where it ends, its stop token included.
        text: The reply, decoded without the stop token.
        format_errors: Names of the format rules it breaks.
    """

    messages: Messages
    start: int
    end: int
    text: str
    format_errors: tuple[str, ...] = ()


@dataclass(frozen=True)
class Trajectory:
    """A finished episode: the prompt, the tokens of all turns, and the reward.

    A format rule is shown the episode up to and including the reply it judges, `text` being that reply.

    Args:
        prompt: The question.
        token_ids: Rendered prompt and everything after it.
        response_mask: True where the student generated the token.
        logprobs: Sampling log-prob of each token in nats, 0 where the student did not generate.
        text: The student's words, decoded without the stop tokens; a line break between turns.
        is_truncated: Whether a limit ended the episode: on a reply's tokens, on turns, on all tokens.
        reward: The task's scores of the outcome.
        format_errors: Names of the format rules that any turn breaks.
        turns: The replies in order.
        split: Split the prompt came from.
        mode: "sampled" or "greedy".
        is_repeat: Whether the episode only fills up an evaluation batch and counts nowhere.
    """

    prompt: Prompt
    token_ids: tuple[int, ...]
    response_mask: tuple[bool, ...]
    logprobs: tuple[float, ...]
    text: str
    is_truncated: bool
    reward: float = 0.0
    format_errors: tuple[str, ...] = ()
    turns: tuple[Turn, ...] = ()
    split: str = "train"
    mode: str = "sampled"
    is_repeat: bool = False

    @property
    def reply_ids(self) -> tuple[int, ...]:
        """Tokens of the last reply, its stop token included."""
        start, end = (self.turns[-1].start, self.turns[-1].end) if self.turns else (0, len(self.token_ids))
        return self.token_ids[start:end]


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
    """

    weight: Float[Tensor, "vocab hidden"] | None
    bias: Float[Tensor, " vocab"] | None
    vocab_size: int
    temperature: float | None = None

    def logits(self, states: Float[Tensor, "*shape hidden"]) -> Float[Tensor, "*shape vocab"]:
        """Return the logits of the real vocabulary at each state."""
        if self.weight is None:
            return states[..., : self.vocab_size]
        bias = None if self.bias is None else self.bias[: self.vocab_size]
        return torch.nn.functional.linear(states, self.weight[: self.vocab_size], bias)


@dataclass(frozen=True)
class TeacherScores:
    """A teacher's scores of every token, on the student's time axis.

    Args:
        logprobs: Teacher log-prob of each token in nats.
        aligned_mask: True where teacher and student speak about the same event.
        top_ids: Teacher's k likeliest token ids at each position, or None.
        top_logprobs: Their log-probs in nats, or None.
        hidden_states: States from which the teacher's head predicts token t, or None.
        metrics: What the teacher measured, `name → (sum, count)`; the same names on every rank.
    """

    logprobs: Float[Tensor, "batch time"]
    aligned_mask: Bool[Tensor, "batch time"]
    top_ids: Int[Tensor, "batch time k"] | None = None
    top_logprobs: Float[Tensor, "batch time k"] | None = None
    hidden_states: Float[Tensor, "batch time hidden"] | None = None
    metrics: Mapping[str, tuple[Tensor, Tensor]] = field(default_factory=dict)


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
        updates_per_batch: Optimiser steps per rollout batch of rollouts.
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


@dataclass
class RolloutBatch:
    """A rollout batch of scored rollouts, or one micro-batch cut from it.

    Args:
        token_ids: Prompt, response and padding (either side).
        attention_mask: True on real tokens.
        response_mask: True where the student generated the token; fixed from the rollout on.
        rollout_logprobs: Sampling log-probs in nats, 0 outside the response.
        teacher_logprobs: Log-prob of each token under the prompt's own teacher, in nats.
        aligned_mask: True where teacher and student speak about the same event.
        distill_mask: True where the distillation term may act; callbacks may clear it.
        distill_weights: Weight of the distillation term per trajectory; callbacks may change it.
        outcome_advantages: Advantage from outcome rewards per trajectory; callbacks may set it.
        rewards: The task's reward per trajectory.
        group_ids: Equal for siblings of one prompt.
        teacher_ids: Index of the prompt's teacher in the sorted teacher names.
        is_truncated: Whether a length limit ended the trajectory.
        has_format_error: Whether any format rule is broken.
        num_active_tokens: Response tokens of this optimiser step over all micro-batches and
            ranks: the one denominator. Masks, weights and clips never change it.
        num_trajectories: Trajectories of this optimiser step over all micro-batches and ranks.
        temperature: Sampling temperature, also that of the student's and teacher's log-probs.
        teacher_names: Sorted names that `teacher_ids` index.
        metrics: What the rollout batch measured, `name → (sum, count)`; on its first micro-batch only.
        trajectories: The episodes behind the rows; empty in a restored batch.
        is_off_policy: Whether a data set or a teacher wrote the responses.
        old_logprobs: Student log-probs before the rollout batch's first update, or None.
        kl: −E_{a∼π}[transformed log-ratio] in nats at the state that chose token t, where the estimator
            needs it: the plain KL from student to teacher if nothing is transformed; or None.
        reference_logprobs: Log-probs under a reference model, or None.
        baselines: Per-token baselines computed on the whole rollout batch, or None.
        teacher_scores: Whatever else the teachers answered, or None.
    """

    token_ids: Int[Tensor, "batch time"]
    attention_mask: Bool[Tensor, "batch time"]
    response_mask: Bool[Tensor, "batch time"]
    rollout_logprobs: Float[Tensor, "batch time"]
    teacher_logprobs: Float[Tensor, "batch time"]
    aligned_mask: Bool[Tensor, "batch time"]
    distill_mask: Bool[Tensor, "batch time"]
    distill_weights: Float[Tensor, " batch"]
    outcome_advantages: Float[Tensor, " batch"]
    rewards: Float[Tensor, " batch"]
    group_ids: Int[Tensor, " batch"]
    teacher_ids: Int[Tensor, " batch"]
    is_truncated: Bool[Tensor, " batch"]
    has_format_error: Bool[Tensor, " batch"]
    num_active_tokens: Float[Tensor, ""]
    num_trajectories: Float[Tensor, ""]
    temperature: float = 1.0
    teacher_names: tuple[str, ...] = ()
    metrics: Mapping[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    trajectories: tuple[Trajectory, ...] = ()
    is_off_policy: bool = False
    old_logprobs: Float[Tensor, "batch time"] | None = None
    kl: Float[Tensor, "batch time"] | None = None
    reference_logprobs: Float[Tensor, "batch time"] | None = None
    baselines: Float[Tensor, "batch time"] | None = None
    teacher_scores: TeacherScores | None = None

    def __len__(self) -> int:
        """Return the number of trajectories."""
        return int(self.token_ids.shape[0])

    def span(self, rows: Int[Tensor, " rows"]) -> slice:
        """Return the columns that hold any token of the given rows."""
        used = self.attention_mask[rows].any(dim=0).nonzero()
        return slice(int(used[0]), int(used[-1]) + 1) if len(used) else slice(0, 1)

    def select(self, rows: Int[Tensor, " rows"]) -> RolloutBatch:
        """Return the given rows as a batch of their own, cut to the columns they use."""
        columns = self.span(rows)

        def cut(value: Tensor) -> Tensor:
            return value[rows][:, columns] if value.ndim >= 2 else value[rows]

        batch = self.map(cut)
        batch.trajectories = tuple(self.trajectories[row] for row in rows.tolist()) if self.trajectories else ()
        return batch

    def map(self, function: Callable[[Tensor], Tensor]) -> RolloutBatch:
        """Return a copy with a function applied to every tensor that has a batch axis."""

        def apply(value: object) -> object:
            if isinstance(value, Tensor) and value.ndim >= 1:
                return function(value)
            if isinstance(value, TeacherScores):
                return dataclasses.replace(value, **_map_fields(value, apply))
            return value

        return dataclasses.replace(self, **_map_fields(self, apply))


def _map_fields(instance: RolloutBatch | TeacherScores, function: Callable[[object], object]) -> dict[str, Any]:
    return {f.name: function(getattr(instance, f.name)) for f in dataclasses.fields(instance)}
