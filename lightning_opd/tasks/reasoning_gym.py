"""The generators of reasoning-gym, each with the verifier it comes with."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from lightning_opd.errors import ConfigError, did_you_mean
from lightning_opd.interfaces import Split, Task
from lightning_opd.tasks.splits import in_split, question_key
from lightning_opd.types import Messages, Prompt

if TYPE_CHECKING:
    from reasoning_gym.dataset import ProceduralDataset

OPEN, CLOSE = "<answer>", "</answer>"


class ReasoningGym(Task):
    """Questions of one of the hundred generators of `reasoning-gym`, rewarded by its own verifier.

    The answer is what the reply's last `<answer>` and `</answer>` enclose, as the system message asks; a reply without
    them has reward 0. A verifier may reward a part of an answer, from 0 to 1. Needs `pip install "lightning-opd[gym]"`.

    A question belongs to the same split under every seed and size (.6 train, .1 validation, .3 test, by its hash), so
    nothing that one run tests was trained on in another.

    Args:
        name: Of the generator, such as `chain_sum`, `spell_backward` or `countdown`.
        size: Questions to draw for all splits together; what is drawn twice counts once.
        seed: Of the questions.
        config: Settings of the generator, such as `{min_terms: 2, max_terms: 3}`.
        system_prompt: The system message: the name of one of reasoning-gym's (`direct`, `simple`, `default`,
            `DeepSeekZero`, `chain_of_draft`), or your own text, which must ask for the two tags.
        teacher: Teacher and domain of all prompts; by default the generator's name.

    Reference:
        Stojanovski et al. 2025, Reasoning Gym: Reasoning Environments for Reinforcement Learning with Verifiable
        Rewards (arXiv 2505.24760).
    """

    def __init__(
        self,
        name: str,
        size: int = 2000,
        seed: int = 0,
        config: Mapping[str, Any] | None = None,
        system_prompt: str = "direct",
        teacher: str | None = None,
    ) -> None:
        """Check the settings; questions are drawn at first use, once."""
        if importlib.util.find_spec("reasoning_gym") is None:
            msg = 'ReasoningGym needs the library reasoning-gym. Install it: pip install "lightning-opd[gym]".'
            raise ConfigError(msg)
        if size < 1:
            msg = f"`size` must be at least 1, got {size}."
            raise ConfigError(msg)
        own = next((key for key in ("seed", "size") if key in (config or {})), None)
        if own is not None:
            msg = (
                f"`config` of ReasoningGym sets `{own}`, which is an argument of its own: set `{own}` beside `config`."
            )
            raise ConfigError(msg)
        self.name, self.size, self.seed, self.config = name, size, seed, dict(config or {})
        self.teacher = name if teacher is None else teacher
        self.generator = self._build()
        self.system_prompt = self._system_prompt(system_prompt)
        self._has_warned = False

    @override
    def prompts(self, split: Split) -> Sequence[Prompt]:
        return self._splits[split]

    @override
    def reward(self, prompt: Prompt, text: str) -> float:
        from reasoning_gym.utils import extract_answer

        answer = extract_answer(text)
        if answer is None:
            return 0.0
        try:
            return float(self.generator.score_answer(answer, self._entries[prompt.key]))
        except Exception as error:  # of a verifier that stumbles over what a model made up
            self._warn(answer, error)
            return 0.0

    @override
    def demonstration(self, prompt: Prompt) -> str | None:
        answer = self._entries[prompt.key]["answer"]
        return None if answer is None else f"{OPEN}{answer}{CLOSE}"

    @override
    def demonstrations(self, split: Split, num_examples: int, seed: int) -> Sequence[Messages]:
        known = [(prompt, self.demonstration(prompt)) for prompt in self.prompts(split)]
        chats = [(*p.messages, {"role": "assistant", "content": text}) for p, text in known if text is not None]
        if not chats:
            msg = (
                f"`{self.name}` of reasoning-gym knows no right answers to its questions; there is nothing to imitate."
            )
            raise ConfigError(msg)
        return [chats[(seed + i) % len(chats)] for i in range(num_examples)]

    def _build(self) -> ProceduralDataset:
        from reasoning_gym.factory import DATASETS, create_dataset

        if self.name not in DATASETS:
            msg = (
                f"`name` is `{self.name}`, which is none of the {len(DATASETS)} generators of reasoning-gym."
                f"{did_you_mean(self.name, sorted(DATASETS))}"
            )
            raise ConfigError(msg)
        try:
            return create_dataset(self.name, size=self.size, seed=self.seed, **self.config)
        except (TypeError, ValueError, AssertionError) as error:
            msg = f"`config` of ReasoningGym does not suit `{self.name}`: {error}. Got {self.config}."
            raise ConfigError(msg) from error

    @staticmethod
    def _system_prompt(given: str) -> str:
        from reasoning_gym.utils import SYSTEM_PROMPTS

        text: str = SYSTEM_PROMPTS.get(given, given)
        if OPEN not in text or CLOSE not in text:
            msg = (
                f"`system_prompt` must ask for the answer between {OPEN} and {CLOSE}, or be one of "
                f"{sorted(SYSTEM_PROMPTS)}; got {given!r}."
            )
            raise ConfigError(msg)
        return text.strip()

    @cached_property
    def _entries(self) -> Mapping[str, dict[str, Any]]:
        """What the generator says of each question, by its key."""
        entries: dict[str, dict[str, Any]] = {}
        for index in range(self.size):
            entry = self.generator[index]
            entries.setdefault(question_key("reasoning_gym", self.name, str(entry["question"])), entry)
        return entries

    @cached_property
    def _splits(self) -> Mapping[str, Sequence[Prompt]]:
        prompts = [
            Prompt(
                messages=(
                    {"role": "system", "content": self.system_prompt},
                    {"role": "user", "content": str(entry["question"])},
                ),
                key=key,
                teacher=self.teacher,
                domain=self.teacher,
                columns={} if entry["answer"] is None else {"answer": str(entry["answer"])},
            )
            for key, entry in self._entries.items()
        ]
        splits: tuple[Split, ...] = ("train", "validation", "test")
        return {split: in_split(prompts, split) for split in splits}

    def _warn(self, answer: str, error: Exception) -> None:
        if not self._has_warned:
            self._has_warned = True
            warnings.warn(
                f"The verifier of `{self.name}` failed on the answer {answer[:80]!r}, "
                f"{type(error).__name__}: {error}. "
                "Such replies have reward 0.",
                stacklevel=2,
            )
