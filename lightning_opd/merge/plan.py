"""What `merge` trains, from where, on what: decided from a base, its experts and prompts."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

from lightning_opd.errors import ConfigError, did_you_mean
from lightning_opd.models.adapters import CONFIG_FILE, adapter_base
from lightning_opd.models.hub import locate
from lightning_opd.models.memory import available_bytes, declared_weights
from lightning_opd.types.mixtures import mixture_weights

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lightning_opd.types import Prompt

PROMPTS_PER_BATCH = 64

TEST_FRACTION, VALIDATION_FRACTION = 0.2, 0.05

BYTES_PER_TRAINED_WEIGHT = 16
"""Weight, gradient and two moments of AdamW, each in float32."""

LEARNING_RATES = ((50e6, 1e-3, 2e-3), (500e6, 2e-5, 2e-4), (float("inf"), 2e-6, 1e-4))
"""Up to so many weights: learning rate of all weights, of an adapter."""


Start: TypeAlias = Literal["base", "average", "task_arithmetic", "ties"]
"""Where the student starts: the base, or a weight merge of the experts."""


@dataclass(frozen=True)
class Expert:
    """An expert by its name in the prompts.

    Args:
        path: Folder or hub name.
        is_adapter: Whether it is a LoRA adapter.
    """

    path: str
    is_adapter: bool


def read_experts(base: str | None, words: Sequence[str]) -> dict[str, Expert]:
    """Return the experts by name, adapters told apart from whole models by their files.

    Args:
        base: Folder or hub name of the model that they were trained from; None where it may be any.
        words: Each `NAME=PATH`.

    Raises:
        ConfigError: A word that is no `NAME=PATH`, a name twice, or an adapter of another base.
        FileNotFoundError: A path that looks like a folder is none.
    """
    experts: dict[str, Expert] = {}
    for word in words:
        name, equals, path = word.partition("=")
        if not (name and equals and path):
            msg = f"`--experts` takes `NAME=PATH`, got `{word}`; the name is that in the prompts' `teacher`."
            raise ConfigError(msg)
        if name in experts:
            msg = f"`--experts` names `{name}` twice: `{experts[name].path}` and `{path}`. Each needs its own name."
            raise ConfigError(msg)
        locate(path, f"the expert `{name}`")
        own = adapter_base(path)
        if base is not None and own is not None and own != base and Path(own).resolve() != Path(base).resolve():
            msg = (
                f"Expert `{name}`: the adapter `{path}` belongs on `{own}`, not on the base `{base}`. Name that one as "
                f"`--base`, or correct `base_model_name_or_path` in its {CONFIG_FILE}."
            )
            raise ConfigError(msg)
        experts[name] = Expert(str(Path(path).resolve()) if Path(path).is_dir() else path, own is not None)
    if not experts:
        msg = "`--experts` needs at least one `NAME=PATH`."
        raise ConfigError(msg)
    return experts


def check_teacher(teacher: str, place: str, experts: Sequence[str]) -> None:
    """Refuse a row whose teacher is no expert.

    Raises:
        ConfigError: With the name, where it stands, and the names that there are.
    """
    if len(mixture_weights(teacher)) > 1:
        msg = (
            f"{place}: `teacher` names several experts ({teacher}), and `merge` compares each prompt with one. "
            "Name one, or train with `fit`."
        )
        raise ConfigError(msg)
    if teacher not in experts:
        msg = (
            f"{place}: `teacher` is `{teacher}`, which is no expert.{did_you_mean(teacher, experts)} "
            f"Experts: {', '.join(experts)}."
        )
        raise ConfigError(msg)


@dataclass(frozen=True)
class MergePlan:
    """What a merge trains, from where, on what; the arguments are those of the command."""

    base: str
    experts: Mapping[str, Expert]
    prompts: str
    output: Path
    start: Start
    steps: int
    max_new_tokens: int
    lora_rank: int | None
    match: Literal["exact", "numeric"]

    def check_start(self) -> None:
        """Refuse a start that the experts do not allow.

        Raises:
            ConfigError: Adapters and models are to be merged by their weights.
        """
        if self.start != "base" and not self.are_alike:
            msg = f"`--start {self.start}` needs experts of one kind, got adapters beside models. Use `--start base`."
            raise ConfigError(msg)

    @property
    def model(self) -> Path:
        """Where the merged model will lie."""
        return self.output / "model"

    @cached_property
    def base_path(self) -> str:
        """The base as an absolute path, or its hub name."""
        return str(Path(self.base).resolve()) if Path(self.base).is_dir() else self.base

    @cached_property
    def rows(self) -> Sequence[Prompt]:
        """All prompts; each names one of the experts.

        Raises:
            ConfigError: A row names a teacher that is no expert.
        """
        from lightning_opd.tasks import Jsonl

        rows = Jsonl(self.prompts, match=self.match).prompts("train")
        for row in rows:
            check_teacher(row.teacher, row.place, list(self.experts))
        return rows

    @property
    def has_answers(self) -> bool:
        """Whether every row has an answer, so that models can be compared."""
        return all("answer" in row.columns for row in self.rows)

    @property
    def are_adapters(self) -> bool:
        """Whether all experts are adapters."""
        return all(expert.is_adapter for expert in self.experts.values())

    @property
    def starts_from_adapter(self) -> bool:
        """Whether the student starts from one adapter that the experts were merged into; TIES gives a whole model."""
        return self.are_adapters and self.start in ("average", "task_arithmetic")

    @property
    def gives_adapter(self) -> bool:
        """Whether the merged model is an adapter on the base."""
        return self.are_adapters and self.start != "ties"

    @property
    def are_alike(self) -> bool:
        """Whether the experts can be merged by their weights: all adapters, or none."""
        return len({expert.is_adapter for expert in self.experts.values()}) == 1

    @cached_property
    def num_weights(self) -> int:
        """Weights of the base."""
        return declared_weights(self.base)

    @cached_property
    def rank(self) -> int | None:
        """Rank of the adapter that is trained; None for all weights."""
        if self.lora_rank is not None:
            return self.lora_rank
        if any(expert.is_adapter for expert in self.experts.values()):
            return 32
        needed = self.num_weights * (BYTES_PER_TRAINED_WEIGHT + 4 * len(self.experts))
        return None if needed < 0.6 * available_bytes() else 64

    @cached_property
    def learning_rate(self) -> float:
        """By the base's size and what is trained of it."""
        _, full, adapter = next(x for x in LEARNING_RATES if self.num_weights <= x[0])
        return full if self.rank is None else adapter

    def summary(self) -> str:
        """Say in a few lines what will be done."""
        counts = Counter(row.teacher for row in self.rows)
        kinds = ", ".join(
            f"{name} ({'adapter' if e.is_adapter else 'model'}, {counts[name]:,} prompts)"
            for name, e in self.experts.items()
        )
        trained = "all weights" if self.rank is None else f"an adapter of rank {self.rank}"
        return (
            f"Merging {kinds} on `{self.base}` ({self.num_weights / 1e6:,.1f} million weights).\n"
            f"The student starts from {self.start.replace('_', ' ')} and trains {trained} for {self.steps:,} steps "
            f"of {self.num_prompts} prompts, learning rate {self.learning_rate:g}."
            + ("" if self.has_answers else "\nNot every row has an `answer`: nothing is tested, there is no report.")
        )

    @property
    def num_prompts(self) -> int:
        """Prompts of a step."""
        kept = 1 - (TEST_FRACTION + VALIDATION_FRACTION if self.has_answers else VALIDATION_FRACTION)
        return max(1, min(PROMPTS_PER_BATCH, int(0.8 * kept * len(self.rows))))
