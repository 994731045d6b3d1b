"""The verbs of the training step as abstract classes; everything else implements one of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal, TypeAlias

import torch
from jaxtyping import Bool, Float, Int
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from typing_extensions import override

from lightning_opd.errors import ConfigError, UnsupportedError
from lightning_opd.functional.logprobs import MAX_CHUNK_ELEMENTS, linear_token_statistics
from lightning_opd.types import (
    LinearHead,
    LossTerms,
    Message,
    Messages,
    Prompt,
    RolloutBatch,
    RunSettings,
    Sample,
    Sampling,
    Signal,
    TeacherScores,
    Trajectory,
)

if TYPE_CHECKING:
    import lightning as L
    from torch.distributed.device_mesh import DeviceMesh
    from transformers import PreTrainedTokenizerBase

Split: TypeAlias = Literal["train", "validation", "test"]


class FormatRule(ABC):
    """One named rule about how a reply must look; decided on token ids and text only.

    In an episode of several turns it is asked once per reply, and shown the episode so far.
    """

    @property
    def name(self) -> str:
        """Name under which violations are counted."""
        return type(self).__name__

    @abstractmethod
    def is_broken(self, trajectory: Trajectory) -> bool:
        """Return whether the trajectory's last reply, `trajectory.text`, breaks this rule."""


class RewardFunction(ABC):
    """Judges a finished episode, beside the task's own outcome."""

    @abstractmethod
    def __call__(self, trajectory: Trajectory) -> float:
        """Return the reward."""


class Environment(ABC):
    """One episode: messages in, messages out."""

    @abstractmethod
    def reset(self) -> Messages:
        """Start the episode and return the messages the student sees first."""

    @abstractmethod
    def step(self, reply: Message) -> Messages:
        """Take the student's reply and return the messages that answer it; empty ends the episode."""

    @abstractmethod
    def reward(self) -> float:
        """Return the reward of the finished episode."""


class Task(ABC):
    """A data set of environments with a verifiable outcome.

    A single-turn task writes `prompts` and `reward`; a task with turns overrides `environment`.
    """

    @abstractmethod
    def prompts(self, split: Split) -> Sequence[Prompt]:
        """Return the prompts of a split, always in the same order."""

    def reward(self, prompt: Prompt, text: str) -> float:
        """Judge the student's whole reply (stop token cut); usually 0 or 1."""
        msg = f"{type(self).__name__} must override `reward` (one turn) or `environment` (several)."
        raise UnsupportedError(msg)

    def environment(self, prompt: Prompt) -> Environment:
        """Return the episode that belongs to a prompt; by default one turn, judged by `reward`."""
        return SingleTurn(self, prompt)

    def format_rules(self) -> Sequence[FormatRule]:
        """Return the rules that every response is checked against; none by default."""
        return ()

    def demonstration(self, prompt: Prompt) -> str | None:
        """Return a right reply to a prompt, or None where none is known; by default its `response` column."""
        response = prompt.columns.get("response")
        return None if response is None else str(response)

    def demonstrations(self, split: Split, num_examples: int, seed: int) -> Sequence[Messages]:
        """Return example chats that end with an assistant message, for supervised training."""
        msg = f"{type(self).__name__} has no demonstrations; override `demonstrations` to train on it supervised."
        raise UnsupportedError(msg)


class SingleTurn(Environment):
    """An episode of one reply, judged by the task's `reward`."""

    def __init__(self, task: Task, prompt: Prompt) -> None:
        """Bind the episode to its prompt."""
        self._task, self._prompt, self._reply = task, prompt, ""

    @override
    def reset(self) -> Messages:
        return self._prompt.messages

    @override
    def step(self, reply: Message) -> Messages:
        self._reply = str(reply["content"])
        return ()

    @override
    def reward(self) -> float:
        return self._task.reward(self._prompt, self._reply)


class RolloutEngine(ABC):
    """Writes responses with the current student."""

    @property
    def is_exact(self) -> bool:
        """Whether its log-probs are the trainer's own, up to rounding."""
        return False

    @abstractmethod
    def sync(self, student: torch.nn.Module, version: int) -> None:
        """Take over the student's weights; `version` grows with every optimiser step."""

    @abstractmethod
    def generate(
        self,
        token_ids: Sequence[Sequence[int]],
        num_samples: int,
        seeds: Sequence[int],
        sampling: Sampling = Sampling(),  # frozen, hence safe to share
        on_progress: Callable[[int], None] | None = None,
    ) -> list[Sample]:
        """Draw `num_samples` responses per prompt, prompt by prompt.

        Args:
            token_ids: Rendered prompts.
            num_samples: Siblings per prompt.
            seeds: One per response, in the order of the answer; a response depends on its prompt,
                its seed and the weights alone.
            sampling: Temperature, nucleus, length and stop tokens.
            on_progress: Called now and then with the number of finished responses.
        """

    def finish(self) -> None:
        """Release what was kept for further turns: these episodes are over."""

    def close(self) -> None:
        """Release what the engine holds."""


class Teacher(ABC):
    """A frozen model that scores every token of its own prompts."""

    @property
    def identity(self) -> Hashable:
        """Equal for teachers that can fraction one loaded model."""
        return id(self)

    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        """Return the tokenizer to compare with the student's, or None where that makes no sense."""
        return None

    def set_student_tokenizer(self, student: PreTrainedTokenizerBase) -> None:
        """Meet the student's tokenizer; called once, before `setup`."""

    @property
    def is_cross_tokenizer(self) -> bool:
        """Whether it reads other tokens than the student generated; known once introduced."""
        return False

    @abstractmethod
    def setup(self, device: torch.device, mesh: DeviceMesh | None = None) -> None:
        """Load the model; called once, on every rank."""

    @abstractmethod
    def score(self, batch: RolloutBatch, signals: frozenset[Signal]) -> TeacherScores:
        """Score every token at the batch's temperature; unwanted signals may stay None."""

    def tree_hidden_states(
        self,
        token_ids: Int[Tensor, "batch time"],
        attention_mask: Bool[Tensor, "batch time time"],
        position_ids: Int[Tensor, "batch time"],
    ) -> Float[Tensor, "batch time hidden"] | None:
        """Return its states after each token of several continuations at once, or None where it has none to give.

        Args:
            token_ids: Prompts, and after each a tree of continuations.
            attention_mask: `sees[b, t, u]` where token t reads token u; each reads itself.
            position_ids: Of each token in its own continuation.
        """
        return None

    def output_head(self) -> LinearHead | None:
        """Return the layer that turns its hidden states into logits, or None where there is none."""
        return None

    def generator(self) -> torch.nn.Module | None:
        """Return the causal language model that can write in its place, or None where there is none."""
        return None

    def close(self) -> None:
        """Release what the teacher holds."""


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

    @cached_property
    def _statistics(self) -> tuple[Float[Tensor, "batch time"], Float[Tensor, "batch time"]]:
        chunk_size = max(1, MAX_CHUNK_ELEMENTS // self.head.vocab_size)
        return linear_token_statistics(
            self.hidden_states,
            self.head.logits,
            self.batch.token_ids,
            self.batch.response_mask,
            self.batch.temperature,
            chunk_size,
        )

    @property
    def logprobs(self) -> Float[Tensor, "batch time"]:
        """Log-prob of every response token in nats, with gradient; computed once."""
        return self._statistics[0]

    @property
    def old_logprobs(self) -> Float[Tensor, "batch time"]:
        """Log-probs in nats before the batch's first update, detached; the current ones if there is one update."""
        return self.logprobs.detach() if self.batch.old_logprobs is None else self.batch.old_logprobs

    @property
    def entropies(self) -> Float[Tensor, "batch time"]:
        """Entropy of the distribution each response token was drawn from, in nats, detached."""
        return self._statistics[1]


BatchForward: TypeAlias = Callable[[Callable[[RolloutBatch, StudentForward], Tensor]], Tensor]
"""Runs the student over a whole rollout batch, part by part and without a graph: from what a function makes
of a part (`[rows, time]`) to the same of all rows (`[batch, time]`)."""


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

    def prepare(self, rollouts: RolloutBatch, over_batch: BatchForward, context: PrepareContext) -> None:
        """Store on a rollout batch what needs all its rows, after the callbacks and before it is cut; on every rank.

        By default the student's log-probs, where later updates will be held against them.
        """
        if context.num_updates > 1:
            rollouts.old_logprobs = over_batch(lambda part, student: student.logprobs)

    def state_kl(
        self, batch: RolloutBatch, student: StudentForward, heads: Sequence[LinearHead | None]
    ) -> Float[Tensor, "batch time"] | None:
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
        heads: Sequence[LinearHead | None] = (),
    ) -> LossTerms:
        """Return the loss of a micro-batch and what to log.

        Args:
            batch: Graded rollouts.
            student: The forward pass to differentiate.
            advantages: Per-token advantages; by default those of `advantages`.
            heads: Output heads of the teachers in the order of `teacher_ids`.
        """


@dataclass(frozen=True)
class PrepareContext:
    """What `Objective.prepare` may use beside the rollout batch.

    Args:
        heads: Output heads of the teachers in the order of `teacher_ids`.
        num_updates: Optimiser steps that this rollout batch serves.
        sum_over_ranks: Adds a tensor up over all ranks.
    """

    heads: Sequence[LinearHead | None]
    num_updates: int
    sum_over_ranks: Callable[[Tensor], Tensor]


class OPDCallback(Callback):
    """A Lightning callback that also sees each training rollout batch before it is cut.

    It may write `distill_mask`, `distill_weights` and `outcome_advantages` of the rollouts,
    nothing else. It is not called in validation.
    """

    @property
    def adds_outcome(self) -> bool:
        """Whether it writes outcome advantages."""
        return False

    def on_rollout_end(self, trainer: L.Trainer, module: L.LightningModule, rollouts: RolloutBatch) -> None:
        """Called once per rollout batch, on every rank, after generation, reward and scoring."""
