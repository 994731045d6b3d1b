"""Writes the recipe of `merge`: what is trained, from where, on what, and what it is compared with."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml

from lightning_opd.errors import ConfigError, did_you_mean
from lightning_opd.models.adapters import CONFIG_FILE, adapter_base
from lightning_opd.models.hub import locate
from lightning_opd.models.memory import available_bytes, num_weights

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lightning_opd.types import Prompt

PROMPTS_PER_BATCH = 64

ROWS_PER_FORWARD = 8
"""Rows of a micro-batch."""

TEST_FRACTION, VALIDATION_FRACTION = 0.2, 0.05
COEFFICIENT = 0.3
"""Of task arithmetic: what its authors found good for several tasks."""

NUM_TESTED = 256
"""Prompts of each expert in a test."""

BYTES_PER_TRAINED_WEIGHT = 16
"""Weight, gradient and two moments of AdamW, each in float32."""

LEARNING_RATES = ((50e6, 1e-3, 2e-3), (500e6, 2e-5, 2e-4), (float("inf"), 2e-6, 1e-4))
"""Up to so many weights: learning rate of all weights, of an adapter."""


@dataclass(frozen=True)
class Expert:
    """An expert by its name in the prompts.

    Args:
        path: Folder or hub name.
        is_adapter: Whether it is a LoRA adapter.
    """

    path: str
    is_adapter: bool


def read_experts(base: str, words: Sequence[str]) -> dict[str, Expert]:
    """Return the experts by name, adapters told apart from whole models by their files.

    Args:
        base: Folder or hub name of the model that they were trained from.
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
        if own is not None and own != base and Path(own).resolve() != Path(base).resolve():
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


@dataclass(frozen=True)
class MergePlan:
    """What a merge trains, from where, on what; the arguments are those of the command."""

    base: str
    experts: Mapping[str, Expert]
    prompts: str
    output: Path
    start: Literal["base", "average", "task_arithmetic"]
    steps: int
    max_new_tokens: int
    lora_rank: int | None
    match: Literal["exact", "numeric"]

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
            if row.teacher not in self.experts:
                names = list(self.experts)
                msg = (
                    f"{row.place}: `teacher` is `{row.teacher}`, which is no expert.{did_you_mean(row.teacher, names)} "
                    f"Experts: {', '.join(names)}."
                )
                raise ConfigError(msg)
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
    def are_alike(self) -> bool:
        """Whether the experts can be merged by their weights: all adapters, or none."""
        return len({expert.is_adapter for expert in self.experts.values()}) == 1

    @cached_property
    def num_weights(self) -> int:
        """Weights of the base."""
        return num_weights(self.base)

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


def write_recipe(plan: MergePlan) -> Path:
    """Write a plan as a recipe and return its folder; nothing is written where the plan is wrong."""
    files: dict[str, dict[str, Any]] = {"merge.yaml": _training(plan)}
    steps: list[dict[str, Any]] = []
    if plan.are_alike and (plan.has_answers or plan.start != "base"):
        for name, coefficient in (("average", None), ("task_arithmetic", COEFFICIENT)):
            if plan.has_answers or name == plan.start:
                files[f"{name}.yaml"] = _weight_merge(plan, name, coefficient)
                steps.append({"name": name, "command": "average", "config": f"{name}.yaml"})
    elif plan.start != "base":
        msg = f"`--start {plan.start}` needs experts of one kind, got adapters beside models. Use `--start base`."
        raise ConfigError(msg)
    steps.append({"name": "merge", "command": "fit", "config": "merge.yaml"})
    if plan.has_answers:
        files["test.yaml"] = _testing(plan)
        models = {"student": str(plan.model), "base": plan.base_path}
        models |= {f"teacher.{name}": expert.path for name, expert in plan.experts.items()}
        models |= {step["name"]: f"${{run}}/{step['name']}/model" for step in steps if step["command"] == "average"}
        for name, path in models.items():
            step = f"test_{name.replace('.', '_')}"
            words = [f"--model.student.path={path}", f"--trainer.default_root_dir=${{run}}/{step}"]
            steps.append({"name": step, "command": "test", "config": "test.yaml", "overrides": words})
        files["parity.yaml"] = {
            "scores": [f"{name}=${{run}}/test_{name.replace('.', '_')}/scores.json" for name in models],
            "curves": "${run}/merge/logs",
            "output": "${run}/parity",
        }
        steps.append({"name": "parity", "command": "parity", "config": "parity.yaml"})
    folder = plan.output / "recipe"
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in {**files, "recipe.yaml": {"steps": steps}}.items():
        command = "run" if name == "recipe.yaml" else name.removesuffix(".yaml")
        text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=100)
        (folder / name).write_text(f"# A file of `lightning_opd merge`; step: {command}\n{text}", encoding="utf-8")
    return folder


def _class(class_path: str, **settings: object) -> dict[str, Any]:
    return {"class_path": class_path, "init_args": settings} if settings else {"class_path": class_path}


def _data(plan: MergePlan) -> dict[str, Any]:
    split = {"validation": VALIDATION_FRACTION} | ({"test": TEST_FRACTION} if plan.has_answers else {})
    rows = str(Path(plan.prompts).resolve()) if Path(plan.prompts).exists() else plan.prompts
    return {
        "task": _class("lightning_opd.tasks.Jsonl", path=rows, split=split, match=plan.match),
        "sampling": {"max_new_tokens": plan.max_new_tokens},
    }


def _training(plan: MergePlan) -> dict[str, Any]:
    student: dict[str, Any] = {"path": plan.base_path if plan.start == "base" else f"${{run}}/{plan.start}/model"}
    if plan.rank is not None and not (plan.are_adapters and plan.start != "base"):  # a merged adapter is trained on
        student["lora"] = {"rank": plan.rank}
    teachers = {
        name: {"adapter": expert.path, "base": plan.base_path} if expert.is_adapter else expert.path
        for name, expert in plan.experts.items()
    }
    optimizer = _class("torch.optim.AdamW", lr=plan.learning_rate, weight_decay=0.0)
    schedule = {"warmup_steps": min(10, plan.steps // 10), "final_fraction": 0.1}
    callbacks = [
        _class("lightning_opd.callbacks.LastCheckpoint"),
        _class("lightning_opd.callbacks.RolloutTable"),
        _class("lightning_opd.callbacks.ExportHuggingFace", folder=str(plan.model), merge=not plan.are_adapters),
    ]
    logger = _class("lightning.pytorch.loggers.TensorBoardLogger", save_dir="${run}/merge", name="", version="logs")
    return {
        "model": {
            "student": student,
            "teachers": teachers,
            "optimizer": optimizer,
            "lr_scheduler": _class("lightning_opd.modules.WarmupCosine", **schedule),
        },
        "data": {
            **_data(plan),
            "prompts_per_batch": plan.num_prompts,
            "evaluation": {"num_validation_prompts": 16},
        },
        "trainer": {
            "max_steps": plan.steps,
            "gradient_clip_val": 1.0,
            "accumulate_grad_batches": max(1, plan.num_prompts // ROWS_PER_FORWARD),
            "val_check_interval": None,
            "num_sanity_val_steps": 0,
            "log_every_n_steps": 1,
            "default_root_dir": "${run}/merge",
            "logger": logger,
            "callbacks": callbacks,
        },
    }


def _weight_merge(plan: MergePlan, name: str, coefficient: float | None) -> dict[str, Any]:
    models = [expert.path for expert in plan.experts.values()]
    scaled = {} if coefficient is None else {"coefficient": coefficient}
    return {"base": plan.base_path, "models": models, **scaled, "output": f"${{run}}/{name}/model"}


def _testing(plan: MergePlan) -> dict[str, Any]:
    evaluation = {"splits": ["test"], "modes": ["greedy"], "num_prompts": NUM_TESTED}
    return {
        "model": {"student": {"path": str(plan.model)}},
        "data": {**_data(plan), "evaluation": evaluation},
        "trainer": {"logger": False, "default_root_dir": "${run}/test_student"},
    }
