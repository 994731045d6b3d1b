"""Episodes of many turns for tests: an environment that answers, and an engine that generates random tokens."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import torch

from lightning_opd.interfaces import Environment, OnProgress, RolloutEngine, Split, Task
from lightning_opd.types import Message, Messages, Prompt, Sample, Sampling

ADVERSARIAL_OUTPUTS = (
    "",
    " ",
    "\n\n",
    "<|im_end|>",
    "<|im_start|>assistant\n",
    "<tool_call>",
    "</tool_call>",
    '{"name": "calc", "arguments": {}}',
    "\N{GRINNING FACE}",
    "\ud83d",  # half an emoji
    "reply",
    "reply_",
    "{{ messages }}{% raw %}",
    "é̈\u200b",
    "0" * 50,
)
"""Answers of a tool that attack the parser, or look like it."""


class Talk(Environment):
    """Answers a fixed number of times with the given texts; the reward is 1 if all replies were short."""

    def __init__(self, prompt: Prompt, answers: Sequence[str]) -> None:
        self.prompt, self.answers = prompt, list(answers)
        self.replies: list[str] = []

    def reset(self) -> Messages:
        return self.prompt.messages

    def step(self, reply: Message) -> Messages:
        self.replies.append(str(reply["content"]))
        if len(self.replies) > len(self.answers):
            return ()
        return ({"role": "tool", "name": "talk", "content": self.answers[len(self.replies) - 1]},)

    def reward(self) -> float:
        return float(all(len(reply) < 20 for reply in self.replies))


class ScriptedChat(Task):
    """Prompts for two teachers; prompt i is answered i mod `turns` times."""

    def __init__(self, num_prompts: int = 12, turns: int = 4, answer: Callable[[int, int], str] | None = None) -> None:
        self.num_prompts, self.turns = num_prompts, turns
        self.answer = answer or (lambda i, turn: f"answer {i} " + "la " * ((i + turn) % 5))

    def prompts(self, split: Split) -> Sequence[Prompt]:
        return [
            Prompt(
                messages=({"role": "user", "content": f"{split[0]}{i} " + "xyz " * (i % 3)},),
                key=f"{split}{i}",
                teacher=("code", "math")[i % 2],
                domain=("code", "math")[i % 2],
                columns={"number": i},
            )
            for i in range(self.num_prompts)
        ]

    def environment(self, prompt: Prompt) -> Environment:
        number = int(str(prompt.columns["number"]))
        return Talk(prompt, [self.answer(number, turn) for turn in range(number % self.turns)])


class RandomEngine(RolloutEngine):
    """Generates random tokens of the whole vocabulary: control tokens, halves of characters, nothing."""

    def __init__(self, vocab_size: int, seed: int = 0) -> None:
        self.noise, self.vocab_size, self.calls = random.Random(seed), vocab_size, 0
        self.written: list[list[Sample]] = []

    def sync(self, student: torch.nn.Module, version: int) -> None:
        """Do nothing: there are no weights."""

    def generate(
        self,
        token_ids: Sequence[Sequence[int]],
        num_samples: int,
        seeds: Sequence[int],
        sampling: Sampling = Sampling(),
        on_progress: OnProgress | None = None,
    ) -> list[Sample]:
        self.calls += 1
        assert len(seeds) == len(set(seeds)) == len(token_ids) * num_samples
        stop = sampling.stop_token_ids[0]
        allowed = [i for i in range(self.vocab_size) if i not in sampling.stop_token_ids]
        samples = []
        for _ in seeds:
            length = self.noise.randrange(sampling.max_new_tokens)
            ids = (*(self.noise.choice(allowed) for _ in range(length)), stop)
            samples.append(Sample(ids, tuple(-self.noise.random() for _ in ids), is_truncated=False))
        self.written.append(samples)
        return samples
