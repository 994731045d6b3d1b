"""From prompts to judged trajectories: render, let the engine write, let the task judge."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from lightning_opd.interfaces import Environment, FormatRule, RolloutEngine, Task
from lightning_opd.tokenization.chat import decode_response, render_prompt
from lightning_opd.types import Prompt, Sample, Sampling, Trajectory

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def run_episodes(
    task: Task,
    prompts: Sequence[Prompt],
    engine: RolloutEngine,
    tokenizer: PreTrainedTokenizerBase,
    seeds: Sequence[int],
    sampling: Sampling,
    max_length: int,
    on_progress: Callable[[int], None] | None = None,
) -> list[Trajectory]:
    """Play `len(seeds) / len(prompts)` one-turn episodes per prompt, prompt by prompt.

    Args:
        task: Gives the environments and the format rules.
        prompts: The questions.
        engine: Writes the replies; it already holds the student.
        tokenizer: The student's.
        seeds: One per episode.
        sampling: How to draw, with the stop tokens filled in.
        max_length: Longest sequence in tokens that the student has positions for.
        on_progress: Called with the number of finished replies.

    Raises:
        ValueError: A prompt leaves no room for the reply, or an episode wants a second turn.
    """
    num_samples = len(seeds) // len(prompts)
    episodes = [[task.environment(prompt) for _ in range(num_samples)] for prompt in prompts]
    token_ids = [render_prompt(tokenizer, siblings[0].reset()) for siblings in episodes]
    for siblings in episodes:
        for environment in siblings[1:]:
            environment.reset()
    check_lengths(token_ids, prompts, sampling.max_new_tokens, max_length)
    samples = engine.generate(token_ids, num_samples, seeds, sampling, on_progress)
    rules = task.format_rules()
    return [
        _judge(
            episodes[i // num_samples][i % num_samples],
            prompts[i // num_samples],
            token_ids[i // num_samples],
            sample,
            tokenizer,
            sampling,
            rules,
        )
        for i, sample in enumerate(samples)
    ]


def check_lengths(
    token_ids: Sequence[Sequence[int]], prompts: Sequence[Prompt], max_new_tokens: int, max_length: int
) -> None:
    """Raise on a prompt that leaves no room for the reply."""
    for ids, prompt in zip(token_ids, prompts, strict=True):
        if len(ids) + max_new_tokens > max_length:
            start = str(prompt.messages[-1].get("content", ""))[:60]
            msg = (
                f"The prompt that begins with {start!r} has {len(ids)} tokens; with `max_new_tokens` {max_new_tokens} "
                f"it exceeds the student's context of {max_length}. Shorten it, or lower `max_new_tokens`."
            )
            raise ValueError(msg)


def _judge(
    environment: Environment,
    prompt: Prompt,
    prompt_ids: Sequence[int],
    sample: Sample,
    tokenizer: PreTrainedTokenizerBase,
    sampling: Sampling,
    rules: Sequence[FormatRule],
) -> Trajectory:
    text = decode_response(tokenizer, sample.token_ids, sampling.stop_token_ids)
    if environment.step({"role": "assistant", "content": text}):
        msg = (
            f"The environment of domain `{prompt.domain}` answers the student's reply; episodes of several turns "
            "are not supported yet. Return no messages from `step` to end the episode."
        )
        raise ValueError(msg)
    num_prompt, num_reply = len(prompt_ids), len(sample.token_ids)
    trajectory = Trajectory(
        prompt=prompt,
        token_ids=(*prompt_ids, *sample.token_ids),
        response_mask=(False,) * num_prompt + (True,) * num_reply,
        logprobs=(0.0,) * num_prompt + sample.logprobs,
        text=text,
        is_truncated=sample.is_truncated,
        reward=float(environment.outcome()),
    )
    errors = tuple(rule.name for rule in rules if rule.is_broken(trajectory))
    return dataclasses.replace(trajectory, format_errors=errors)
