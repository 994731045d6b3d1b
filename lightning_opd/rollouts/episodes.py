"""From prompts to episodes and their rewards: many episodes at once, one call of the engine per turn."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias

from lightning_opd.errors import ConfigError
from lightning_opd.interfaces import Environment, FormatRule, RolloutEngine, Task, finite_reward
from lightning_opd.models import any_rank
from lightning_opd.rollouts.noise import row_seed
from lightning_opd.rollouts.stepping import step_all
from lightning_opd.tokenization.chat import decode_response, render_answer, render_prompt
from lightning_opd.tokenization.exchanges import Exchange, check_turns
from lightning_opd.types import Message, Messages, Prompt, Sample, Sampling, Trajectory, Turn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NUM_TOKENS_BEFORE = 32
"""Tokens before a reply that tell whether it begins inside a thought."""

OnEnd: TypeAlias = Callable[[Sequence[tuple[Prompt, Sequence[int]]]], None]
"""Takes prompt and tokens of the episodes that have just ended."""


def generate_episodes(
    task: Task,
    prompts: Sequence[Prompt],
    engine: RolloutEngine,
    tokenizer: PreTrainedTokenizerBase,
    seeds: Sequence[int],
    sampling: Sampling,
    max_length: int,
    on_progress: Callable[[int], None] | None = None,
    on_end: OnEnd | None = None,
) -> list[Episode]:
    """Generate `len(seeds) / len(prompts)` episodes per prompt, prompt by prompt.

    All episodes advance together: in each turn the engine generates the replies of the active episodes,
    the environments answer, and finished episodes leave. A process whose episodes are all over still calls
    the engine as long as another process has active ones. Tokens stay as sampled: a reply is decoded for
    the environment, never encoded again.

    Args:
        task: Provides the environments and the format rules.
        prompts: The questions; none on a process that only joins the others.
        engine: Generates the replies; it already has the student.
        tokenizer: The student's.
        seeds: One per episode; the first turn uses the seed itself, later turns seeds made from it.
        sampling: How to sample and where to stop, with the stop tokens filled in.
        max_length: Longest sequence in tokens that the student has positions for.
        on_progress: Called with the number of finished episodes and, in between, of the turn's replies.
        on_end: Called with the episodes that have just ended, as soon as that is known, while others go on.

    Raises:
        ValueError: A prompt is too long for the reply to fit.
    """
    engine.use_tokenizer(tokenizer)
    num_samples = max(1, len(seeds) // max(1, len(prompts)))
    max_length = min(max_length, sampling.max_episode_tokens or max_length)
    episodes: list[Episode] = []
    for i, prompt in enumerate(prompts):
        environments = [task.environment(prompt) for _ in range(num_samples)]
        messages, *_ = [environment.reset() for environment in environments]
        prompt_ids = render_prompt(tokenizer, messages)
        for environment, seed in zip(environments, seeds[i * num_samples : (i + 1) * num_samples], strict=True):
            episodes.append(Episode(environment, prompt, messages, prompt_ids, seed, tokenizer, sampling))
    check_lengths([e.token_ids for e in episodes[::num_samples]], prompts, sampling.max_new_tokens, max_length)
    active, turn = episodes, 0
    while turn == 0 or any_rank(bool(active)):  # generation with sharded weights needs all ranks
        num_done = len(episodes) - len(active)
        samples = engine.generate(
            [episode.token_ids for episode in (active[::num_samples] if turn == 0 else active)],
            num_samples if turn == 0 else 1,
            [episode.seed if turn == 0 else row_seed(episode.seed, "turn", turn) for episode in active],
            sampling,
            _Turn(active, num_done, on_progress, on_end) if on_progress is not None or on_end is not None else None,
        )
        were_known = [episode.ends_with(sample) for episode, sample in zip(active, samples, strict=True)]
        replies = [episode.read(sample) for episode, sample in zip(active, samples, strict=True)]
        answers = step_all([episode.environment for episode in active], replies)
        for episode, sample, reply, answer in zip(active, samples, replies, answers, strict=True):
            episode.advance(sample, reply, answer, max_length)
        if on_end is not None:
            known_now = [e for e, was_known in zip(active, were_known, strict=True) if e.is_over and not was_known]
            on_end([(episode.prompt, episode.token_ids) for episode in known_now])
        active, turn = [episode for episode in active if not episode.is_over], turn + 1
    engine.finish()
    return episodes


class _Turn:
    """Passes on what an engine tells of the replies of a turn."""

    def __init__(
        self,
        episodes: Sequence[Episode],
        num_done: int,
        on_progress: Callable[[int], None] | None,
        on_end: OnEnd | None,
    ) -> None:
        self._episodes, self._num_done, self._on_progress, self._on_end = episodes, num_done, on_progress, on_end

    def __call__(self, ended: Mapping[int, Sample]) -> None:
        self._num_done += len(ended)
        if self._on_progress is not None:
            self._on_progress(self._num_done)
        if self._on_end is not None:
            replies = [(self._episodes[i], sample) for i, sample in ended.items()]
            self._on_end([(e.prompt, [*e.token_ids, *s.token_ids]) for e, s in replies if e.ends_with(s)])


def reward_episodes(episodes: Sequence[Episode], task: Task) -> list[Trajectory]:
    """Return finished episodes with the reward of their environment and the format rules that they break."""
    rules = [rule.for_tokenizer(episodes[0].tokenizer) for rule in task.format_rules()] if episodes else []
    return [_apply_format_rules(episode.trajectory(), rules) for episode in episodes]


def check_lengths(
    token_ids: Sequence[Sequence[int]], prompts: Sequence[Prompt], max_new_tokens: int, max_length: int
) -> None:
    """Raise on a prompt that is too long for the reply to fit."""
    for ids, prompt in zip(token_ids, prompts, strict=True):
        if len(ids) + max_new_tokens > max_length:
            start = str(prompt.messages[-1].get("content", ""))[:60]
            msg = (
                f"The prompt that begins with {start!r} has {len(ids)} tokens; with `max_new_tokens` {max_new_tokens} "
                f"it exceeds the context of {max_length}. Shorten it, or lower `max_new_tokens`."
            )
            raise ConfigError(msg)


class Episode:
    """One running episode."""

    def __init__(
        self,
        environment: Environment,
        prompt: Prompt,
        messages: Messages,
        prompt_ids: Sequence[int],
        seed: int,
        tokenizer: PreTrainedTokenizerBase,
        sampling: Sampling,
    ) -> None:
        self.environment, self.prompt = environment, prompt
        self.tokenizer, self._sampling, self.seed = tokenizer, sampling, seed
        self._messages: list[Message] = list(messages)
        self.token_ids = list(prompt_ids)
        self._mask = [False] * len(self.token_ids)
        self._logprobs = [0.0] * len(self.token_ids)
        self._turns: list[Turn] = []
        self._exchanges: list[Exchange] = []
        self.is_over = self._is_truncated = False

    def ends_with(self, sample: Sample) -> bool:
        """Return whether the episode is known to end with a reply before the environment has seen it."""
        is_last = self.environment.takes_one_reply or len(self._turns) + 1 == self._sampling.max_turns
        return is_last or sample.is_truncated

    def read(self, sample: Sample) -> Message:
        """Return a reply as the environment reads it."""
        text = decode_response(self.tokenizer, sample.token_ids, self._sampling.stop_token_ids)
        end = self.token_ids[-NUM_TOKENS_BEFORE:]
        prompt = str(self.tokenizer.decode(end, skip_special_tokens=False, clean_up_tokenization_spaces=False))
        start = len(self.token_ids)
        self._turns.append(Turn(tuple(self._messages), start, start + len(sample.token_ids), text))
        return self.environment.read(text, prompt, self.tokenizer)

    def advance(self, sample: Sample, reply: Message, answer: Messages, max_length: int) -> None:
        """Take a reply and the environment's answer to it, and check whether another turn fits."""
        before = self._turns[-1].messages
        self._append(sample.token_ids, sample.logprobs, is_reply=True)
        self._is_truncated, self.is_over = sample.is_truncated, sample.is_truncated or not answer
        if self.is_over:
            return
        if len(self._turns) < self._sampling.max_turns:
            said = {**reply, "content": self._turns[-1].text}
            self._exchanges.append(Exchange.of(self.tokenizer, said, answer))
            check_turns(self.tokenizer, self._turns[0].messages, self._exchanges)
        answer_ids = render_answer(self.tokenizer, before, answer, sample.token_ids[-1], reply)
        fits = len(self.token_ids) + len(answer_ids) + self._sampling.max_new_tokens <= max_length
        if not fits or len(self._turns) == self._sampling.max_turns:
            self._is_truncated = self.is_over = True
            return
        self._messages += [reply, *answer]
        self._append(answer_ids, [0.0] * len(answer_ids), is_reply=False)

    def _append(self, token_ids: Sequence[int], logprobs: Sequence[float], *, is_reply: bool) -> None:
        self.token_ids += token_ids
        self._logprobs += logprobs
        self._mask += [is_reply] * len(token_ids)

    def trajectory(self) -> Trajectory:
        """Return the finished episode, with its reward, not yet checked by format rules."""
        name = type(self.environment).__name__
        return Trajectory(
            prompt=self.prompt,
            token_ids=tuple(self.token_ids),
            response_mask=tuple(self._mask),
            logprobs=tuple(self._logprobs),
            text="\n".join(turn.text for turn in self._turns),
            is_truncated=self._is_truncated,
            reward=finite_reward(self.environment.reward(), f"`{name}.reward`", self.prompt.key),
            turns=tuple(self._turns),
        )


def _apply_format_rules(trajectory: Trajectory, rules: Sequence[FormatRule]) -> Trajectory:
    """Apply every rule to each reply and what came before it."""
    turns, checked = trajectory.turns, []
    for i, turn in enumerate(turns):
        is_last = i + 1 == len(turns)
        so_far = dataclasses.replace(
            trajectory,
            token_ids=trajectory.token_ids[: turn.end],
            response_mask=trajectory.response_mask[: turn.end],
            logprobs=trajectory.logprobs[: turn.end],
            text=turn.text,
            is_truncated=trajectory.is_truncated and is_last,
            turns=turns[: i + 1],
        )
        errors = tuple(rule.name for rule in rules if rule.is_broken(so_far))
        checked.append(dataclasses.replace(turn, format_errors=errors))
    broken = {name for turn in checked for name in turn.format_errors}
    names = tuple(rule.name for rule in rules if rule.name in broken)
    return dataclasses.replace(trajectory, turns=tuple(checked), format_errors=names)
