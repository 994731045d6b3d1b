"""What a run will do, said before it begins, and what came of it, said at its end."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import lightning as L  # Lightning's own convention
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from rich import get_console
from rich.table import Table
from rich.text import Text
from typing_extensions import override

from lightning_opd.callbacks.export import ExportHuggingFace
from lightning_opd.callbacks.pace import clock
from lightning_opd.callbacks.preemption import preempted
from lightning_opd.collection import RolloutProducer
from lightning_opd.models import causal_lm, parameter_counts, student_owner
from lightning_opd.teachers import LocalTeacher
from lightning_opd.tokenization.visible import visible

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from lightning_opd.collection import RolloutPlan
    from lightning_opd.interfaces import Teacher
    from lightning_opd.types import Prompt

PARTS = ("reward", "format", "response_length", "teacher_kl")
"""Columns of an evaluation's table."""
COMMANDS = ("curves", "next")
"""Rows that hold what to type."""


class RunSummary(Callback):
    """Say before training what will run, and at its end the last metrics, where everything lies, and what to type next.

    Before: the models and their sizes, prompts per split and teacher, tokens of a rollout batch at most, stop tokens,
    steps, device, and an estimate of memory. After `validate` and `test`: the scores as a table. The command line adds
    this callback by itself; it comes after `ExportHuggingFace` in a trainer's callbacks.
    """

    def __init__(self) -> None:
        """Wait for a run to begin."""
        self._began = time.monotonic()

    @override
    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._began = time.monotonic()
        if trainer.is_global_zero:
            show("the run", start_rows(trainer, pl_module))

    @override
    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        metrics = _read_metrics(trainer)
        if not trainer.is_global_zero or preempted(trainer):  # the latter says itself how to go on
            return
        seconds = clock(time.monotonic() - self._began)
        show(f"finished {trainer.global_step} optimiser steps in {seconds}", end_rows(trainer, metrics))

    @override
    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        trainer.test_loop.verbose = False  # Lightning's own table

    @override
    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._show_scores(trainer, "test")

    @override
    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        trainer.validate_loop.verbose = False

    @override
    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn == "validate":
            self._show_scores(trainer, "val")

    def _show_scores(self, trainer: L.Trainer, stage: str) -> None:
        metrics = _read_metrics(trainer)
        if trainer.is_global_zero:
            get_console().print(scores_table(metrics, stage))
            if stage == "test":
                show("written", [("scores", str(Path(trainer.default_root_dir) / "scores.json"))])


def _read_metrics(trainer: L.Trainer) -> dict[str, float]:
    """Return the last metrics; called on every rank, since reading may reduce over ranks."""
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


def show(title: str, rows: Iterable[tuple[str, str]]) -> None:
    """Print names and texts: as a table that wraps at the width of a terminal, elsewhere one line each.

    Commands are never wrapped, so that they can be copied.
    """
    console = get_console()
    table = Table(title=title, title_justify="left", box=None, show_header=False, pad_edge=False, title_style="bold")
    table.add_column(no_wrap=True, style="cyan")
    table.add_column(overflow="fold")
    lines = [] if console.is_terminal else [title]
    for name, text in ((name, visible(text)) for name, text in rows):
        if console.is_terminal and name not in COMMANDS:
            table.add_row(name, Text(text))
        else:
            lines.append(f"{name}: {text}")
    if console.is_terminal:
        console.print(table)
    for line in lines:
        console.print(Text(line), soft_wrap=True)


def start_rows(trainer: L.Trainer, module: L.LightningModule) -> list[tuple[str, str]]:
    """Return what will run, by name."""
    owner = student_owner(module)
    counts = parameter_counts(owner.loaded_student)
    path = causal_lm(owner.loaded_student).config.name_or_path or "new weights"
    rows = [("student", f"{path}: {short(counts.all)} parameters, {short(counts.trainable)} of them trained")]
    memory = counts.bytes + 3 * counts.trainable_bytes  # weights; gradients and the two moments of Adam
    data = trainer.datamodule  # type: ignore[attr-defined]  # set by Lightning at run time
    if isinstance(data, RolloutProducer):
        plan = data.plan()
        own, teacher_memory = _teachers(plan.learner.teachers.distinct)
        memory += teacher_memory
        rows += [*own, ("objective", type(plan.learner.objective).__name__), *_prompts(plan), *_rollouts(plan)]
    after = f", going on after step {trainer.global_step}" if trainer.global_step else ""
    each = trainer.accumulate_grad_batches
    return [
        *rows,
        ("steps", f"{_steps(trainer)} of {each} micro-batch{'es' if each > 1 else ''} a process{after}"),
        ("device", f"{trainer.strategy.root_device}, {trainer.precision}, {_processes(trainer.world_size)}"),
        ("memory", f"about {_size(memory)} a process for weights, gradients and Adam's moments, without activations"),
        ("output", trainer.default_root_dir),
    ]


def _steps(trainer: L.Trainer) -> str:
    """Return the limits of the run; Lightning's own estimate would load data on this rank alone."""
    steps = f"{trainer.max_steps:,} optimiser steps" if trainer.max_steps > 0 else ""
    epochs = f"{trainer.max_epochs:,} epochs" if (trainer.max_epochs or -1) > 0 else ""
    return " or ".join(text for text in (steps, epochs) if text) or "optimiser steps without end"


def _teachers(teachers: Mapping[str, Teacher]) -> tuple[list[tuple[str, str]], int]:
    """Return each teacher's row and the memory of all."""
    rows, memory = [], 0
    for name, teacher in teachers.items():
        text = type(teacher).__name__
        if isinstance(teacher, LocalTeacher):
            counts = parameter_counts(teacher.loaded_model)
            memory += counts.bytes
            text = f"{teacher.path}: {short(counts.all)} parameters"
        rows.append((f"teacher {visible(name)}", text))
    return rows, memory


def _prompts(plan: RolloutPlan) -> list[tuple[str, str]]:
    return [(f"{split} prompts", _by_teacher(prompts)) for split, prompts in plan.splits.items()]


def _by_teacher(prompts: Sequence[Prompt]) -> str:
    counts = sorted(Counter(prompt.teacher for prompt in prompts).items())
    each = ", ".join(f"{name or 'no teacher'} {count:,}" for name, count in counts)
    return f"{len(prompts):,} ({each})" if prompts else "0"


def _rollouts(plan: RolloutPlan) -> list[tuple[str, str]]:
    tokenizer, sampling = plan.learner.tokenizer, plan.sampling
    size, samples, length = plan.prompts_per_batch, plan.samples_per_prompt, sampling.max_new_tokens
    updates = plan.updates_per_batch
    stops = ", ".join(f"{tokenizer.convert_ids_to_tokens(i)} ({i})" for i in sampling.stop_token_ids)
    text = (
        f"{size} prompts × {samples} sample{'s' if samples > 1 else ''} × at most {length} tokens a reply = "
        f"{size * samples * length:,} tokens, {updates} update{'s' if updates > 1 else ''}"
    )
    return [("rollout batch", text), ("stop tokens", stops)]


def _processes(number: int) -> str:
    return f"{number} process{'es' if number > 1 else ''}"


def end_rows(trainer: L.Trainer, metrics: Mapping[str, float]) -> list[tuple[str, str]]:
    """Return the last metrics, where everything lies, and what to type next, by name."""
    shown = {name: value for name, value in metrics.items() if name.count("/") == 1 and not name.startswith("time/")}
    rows = [(stage, _metrics(shown, stage)) for stage in ("train", "val")]
    root = Path(trainer.default_root_dir)
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]  # set by Lightning at run time
    models = [Path(c.folder or root / "model") for c in callbacks if isinstance(c, ExportHuggingFace)]
    found = {c.last_model_path or c.best_model_path for c in callbacks if isinstance(c, ModelCheckpoint)}
    checkpoints = sorted(path for path in found if path and Path(path).exists())
    rows += [("model", str(path)) for path in models if path.is_dir()]
    rows += [("checkpoint", path) for path in checkpoints]
    rows += [("curves", f"tensorboard --logdir {logger.log_dir}") for logger in trainer.loggers if logger.log_dir]
    config, command = root / "config.yaml", "python -m lightning_opd"
    if config.is_file() and models and models[0].is_dir():
        rows.append(("next", f"{command} test --config {config} --model.student.path {models[0]}{_tested(trainer)}"))
    elif config.is_file() and checkpoints:
        rows.append(
            ("next", f"{command} export --config {config} --checkpoint {checkpoints[0]} --output {root / 'model'}")
        )
    return [(name, text) for name, text in rows if text]


def _tested(trainer: L.Trainer) -> str:
    """Return the words by which `test` goes over prompts that there are, where there are none for tests."""
    data = trainer.datamodule  # type: ignore[attr-defined]  # set by Lightning at run time
    splits = data.plan().splits if isinstance(data, RolloutProducer) else {}
    if splits.get("test", True):
        return ""
    return f" --data.evaluation.splits=[{'validation' if splits.get('validation') else 'train'}]"


def _metrics(metrics: Mapping[str, float], stage: str) -> str:
    own = {name.partition("/")[2]: value for name, value in metrics.items() if name.startswith(f"{stage}/")}
    return ", ".join(f"{name} {value:.3f}" for name, value in own.items())


def scores_table(metrics: Mapping[str, float], stage: str) -> Table:
    """Return an evaluation's means as a table: a row per split, mode and domain, three digits.

    Args:
        metrics: Such as `test/reward/train/greedy/code` → 0.5, or `val/reward/code`.
        stage: `test` or `val`.
    """
    num_places = 2 if stage == "test" else 0  # split and mode stand between the name and the domain
    cells: dict[tuple[str, ...], dict[str, float]] = {}
    for name, value in metrics.items():
        own, part, *rest = name.split("/")
        if own == stage and part in PARTS and len(rest) >= num_places:
            row = (*rest[:num_places], "/".join(rest[num_places:]))
            cells.setdefault(row, {})[part] = value
    parts = [part for part in PARTS if any(part in row for row in cells.values())]
    table = Table(title=f"{stage} scores", title_justify="left")
    for name in ("split", "mode")[:num_places]:
        table.add_column(name, overflow="fold")
    table.add_column("domain", overflow="fold")
    for part in parts:
        table.add_column(part.replace("_", " "), justify="right", min_width=len("-0.000"))
    for row, values in sorted(cells.items()):
        names = [visible(name) for name in row[:-1]] + [visible(row[-1]) or "all"]
        numbers = [f"{values[part]:.3f}" if part in values else "–" for part in parts]
        table.add_row(*(Text(text) for text in names + numbers))
    return table


def short(number: float) -> str:
    """Return a number with a unit.

    Example:
        >>> short(27_904), short(1.5e9), short(12)
        ('27.9 K', '1.5 B', '12')
    """
    for limit, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
        if number >= limit:
            return f"{number / limit:.3g} {unit}"
    return f"{number:.0f}"


def _size(num_bytes: float) -> str:
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.1f} MB"
