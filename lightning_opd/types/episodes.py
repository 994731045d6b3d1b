"""Prompts, how to sample, and what an episode leaves: samples, turns, trajectories."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from lightning_opd.errors import ConfigError

Message: TypeAlias = Mapping[str, object]
"""One chat message: at least `role` and `content`. A chat's first message may carry `tools`, the JSON
schemas that its template shows. A reply that calls tools has `tool_calls`, each with an id and with arguments as a
mapping; a message of role `tool` has the `tool_call_id` that it answers, and the tool's `name`."""

Messages: TypeAlias = Sequence[Message]

TEMPLATE_SETTINGS = "chat_template_kwargs"
"""Key of a chat template's settings: in tokenizer_config.json, and in a chat's first message for that chat alone."""

CONTROL_TOKENS = "control_tokens_in_text"
"""Key in tokenizer_config.json: what becomes of control tokens that a user or a tool spells out."""

Split: TypeAlias = Literal["train", "validation", "test"]

Mode: TypeAlias = Literal["sampled", "greedy"]


@dataclass(frozen=True)
class Prompt:
    """One question of a task.

    Args:
        messages: The chat so far; the student generates the next assistant message.
        key: Hash of the question; equal keys are the same question in every run and model.
        teacher: Name of the teacher that scores this prompt.
        domain: Name under which results are reported.
        columns: Everything else the row carries, for example the right answer.
        place: Where it comes from, for messages: file and line; empty where there is none.
    """

    messages: Messages
    key: str
    teacher: str
    domain: str
    columns: Mapping[str, object] = field(default_factory=dict)
    place: str = field(default="", compare=False)


@dataclass(frozen=True)
class Sampling:
    """How the student generates: the draw of a token, and how far it may go.

    Args:
        temperature: Softmax temperature; 0 is greedy (log-probs are then those at temperature 1).
        top_p: Nucleus mass kept; 1 keeps the whole vocabulary.
        top_k: Likeliest tokens kept; by default all.
        min_p: Tokens less likely than this fraction of the likeliest are never drawn; 0 keeps all.
        repetition_penalty: Divides the positive logits of tokens that the prompt or the reply already has, and
            multiplies the negative ones; 1 is none.
        max_new_tokens: Longest reply in tokens, the stop token included.
        max_turns: Most replies of one episode; one that wants more ends truncated.
        max_episode_tokens: Longest episode in tokens, everything included; by default what the
            student has positions for. One that has no space for a whole reply ends truncated.
        stop_token_ids: Tokens that end a response; the data module fills in the tokenizer's.
        stop_strings: Texts that end a response with the token that completes them; they stay in it.
        vocab_size: Ids from here on (padded rows of the output layer) are never drawn; the data
            module fills in the tokenizer's.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int | None = None
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    max_new_tokens: int = 64
    max_turns: int = 16
    max_episode_tokens: int | None = None
    stop_token_ids: tuple[int, ...] = ()
    stop_strings: tuple[str, ...] = ()
    vocab_size: int | None = None

    @property
    def keeps_the_distribution(self) -> bool:
        """Whether tokens are drawn from the model's whole distribution, whatever its temperature."""
        return self.top_p == 1 and self.top_k is None and self.min_p == 0 and self.repetition_penalty == 1

    def __post_init__(self) -> None:
        """Refuse values no engine can draw with."""
        if not 0 <= self.temperature < math.inf:
            msg = f"`temperature` must be 0 (greedy) or positive, got {self.temperature}."
            raise ConfigError(msg)
        if not 0 < self.top_p <= 1:
            msg = f"`top_p` must lie in (0, 1], got {self.top_p}."
            raise ConfigError(msg)
        if not 0 <= self.min_p <= 1:
            msg = f"`min_p` must lie in [0, 1], got {self.min_p}."
            raise ConfigError(msg)
        if not 0 < self.repetition_penalty < math.inf:
            msg = f"`repetition_penalty` must be positive (1 is none), got {self.repetition_penalty}."
            raise ConfigError(msg)
        if "" in self.stop_strings:
            msg = "`stop_strings` has an empty text, which would end every reply at once. Remove it."
            raise ConfigError(msg)
        for name in ("max_new_tokens", "max_turns", "max_episode_tokens", "top_k", "vocab_size"):
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

    A format rule is shown the episode up to and including the reply it checks, `text` being that reply.

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


class PromptBatch:
    """The prompts behind one micro-batch; opaque to Lightning, which would copy a dataclass.

    Args:
        prompts: This rank's prompts of the rollout batch.
        rows: Index of each prompt in the whole rollout batch over all ranks.
        index: Rollout batches delivered before this one.
        micro_batch: Which micro-batch of the rollout batch this is.
        split: Split the prompts came from.
        mode: "sampled" or "greedy".
        num_real: Prompts before this count; the others repeat the first to fill up a rank.
    """

    def __init__(
        self,
        prompts: Sequence[Prompt],
        rows: Sequence[int],
        index: int = 0,
        micro_batch: int = 0,
        split: Split = "train",
        mode: str = "sampled",
        num_real: int | None = None,
    ) -> None:
        """Bundle the prompts."""
        self.prompts, self.rows, self.index, self.micro_batch = tuple(prompts), tuple(rows), index, micro_batch
        self.split, self.mode = split, mode
        self.num_real = len(prompts) if num_real is None else num_real
