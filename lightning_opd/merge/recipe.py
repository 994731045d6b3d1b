"""Writes a plan as a recipe: the files of its steps, to be read, changed and run again."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from lightning_opd.merge.plan import TEST_FRACTION, VALIDATION_FRACTION

if TYPE_CHECKING:
    from lightning_opd.merge.plan import MergePlan

ROWS_PER_FORWARD = 8
"""Rows of a micro-batch."""

WEIGHT_MERGES: Mapping[str, Mapping[str, object]] = {
    "average": {},
    "task_arithmetic": {"coefficient": 0.3},
    "ties": {"method": "ties"},
}
"""Settings of `average` by name; .3 is what the authors of task arithmetic found good for several tasks."""

NUM_TESTED = 256
"""Prompts of each expert in a test."""


def write_recipe(plan: MergePlan) -> Path:
    """Write a plan as a recipe and return its folder; nothing is written where the plan is wrong."""
    files: dict[str, dict[str, Any]] = {"merge.yaml": _training(plan)}
    steps: list[dict[str, Any]] = []
    plan.check_start()
    if plan.are_alike and (plan.has_answers or plan.start != "base"):
        for name, settings in WEIGHT_MERGES.items():
            is_compared = plan.has_answers and (name != "ties" or not plan.are_adapters)  # no adapter comes of TIES
            if is_compared or name == plan.start:
                files[f"{name}.yaml"] = _weight_merge(plan, name, settings)
                steps.append({"name": name, "command": "average", "config": f"{name}.yaml"})
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
    if plan.rank is not None and not plan.starts_from_adapter:  # a merged adapter is trained on
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
        _class("lightning_opd.callbacks.ExportHuggingFace", folder=str(plan.model), merge=not plan.gives_adapter),
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


def _weight_merge(plan: MergePlan, name: str, settings: Mapping[str, object]) -> dict[str, Any]:
    models = [expert.path for expert in plan.experts.values()]
    return {"base": plan.base_path, "models": models, **settings, "output": f"${{run}}/{name}/model"}


def _testing(plan: MergePlan) -> dict[str, Any]:
    evaluation = {"splits": ["test"], "modes": ["greedy"], "num_prompts": NUM_TESTED}
    return {
        "model": {"student": {"path": str(plan.model)}},
        "data": {**_data(plan), "evaluation": evaluation},
        "trainer": {"logger": False, "default_root_dir": "${run}/test_student"},
    }
