"""The command `run`: the steps of a recipe, in order."""

from __future__ import annotations

import contextlib
import gc
import os
import sys
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_opd.cli.commands import command_line, run_command
from lightning_opd.cli.errors import (
    INTERRUPTED_EXIT_CODE,
    SIGNAL_EXIT_CODE,
    USAGE_EXIT_CODE,
    settings_message,
    wants_traceback,
)
from lightning_opd.cli.report import show_report
from lightning_opd.errors import ConfigError
from lightning_opd.options.outputs import check_output
from lightning_opd.options.shipped import note_origin
from lightning_opd.options.table import TRAINER_COMMANDS
from lightning_opd.workflow.recipe import find_recipe, read_recipe
from lightning_opd.workflow.step import Step, resolve

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import Console


def run(
    recipe: str, /, seed: int = 0, output: str = "runs", until: str | None = None, from_: str | None = None
) -> None:
    """Run a recipe's steps in order.

    Finished steps are skipped, an interrupted `fit` goes on from its last checkpoint, an interrupted `script` finds its
    folder as it left it, and a step is redone if its YAML, an earlier step, or the package's version has changed.
    Outputs lie in OUTPUT/RECIPE/seedN/STEP.

    Args:
        recipe: Folder with a recipe.yaml, or the name of a recipe that comes with the package.
        seed: Seed of every step.
        output: Folder for the outputs of all recipes.
        until: Name of the last step to run.
        from_: Name of the first step to redo, with all later ones, even if finished.
    """
    from rich.console import Console
    from rich.table import Table

    check_output(Path(output), "output")
    plan = read_recipe(find_recipe(recipe))
    note_origin(recipe, plan.folder)
    redo = len(plan.steps) if from_ is None else plan.position(from_)
    last = len(plan.steps) if until is None else plan.position(until) + 1
    if redo >= last and from_ is not None:
        msg = f"`from` ({from_}) comes after `until` ({until}) in `{plan.folder.name}`; there is nothing to run."
        raise ConfigError(msg)
    again = f"python -m lightning_opd run {recipe}" + (f" --seed {seed}" if seed else "")
    again += (f" --output {output}" if output != "runs" else "") + (f" --until {until}" if until else "")
    console = Console()
    steps = resolve(plan, output, seed)
    table = Table("step", "status", "seconds", "outputs", box=None, pad_edge=False)
    reports, total = [], 0.0
    for index, step in enumerate(steps[:last]):
        console.rule(f"[bold]\\[{index + 1}/{len(steps)}] {step.name}[/bold] · {step.command}", align="left")
        status, seconds = _run_step(step, console, again, redo=index >= redo)
        table.add_row(step.name, status, f"{seconds:.1f}" if seconds else "–", str(step.folder))
        total += seconds
        reports += [step.folder / "parity.md"] if status == "skipped" else []
    console.rule("[bold]summary[/bold]", align="left")
    table.add_row("total", "", f"{total:.1f}", "")
    console.print(table)
    for report in [report for report in reports if report.is_file()]:
        show_report(report.read_text(encoding="utf-8"))


def _run_step(step: Step, console: Console, again: str, *, redo: bool) -> tuple[str, float]:
    """Skip a step, resume it, or run it anew; return which (`skipped`, `resumed`, `done`), and the seconds it took."""

    def note(text: str) -> None:
        console.print(text, style="dim", highlight=False, soft_wrap=True)

    if step.state() == "finished" and not redo:
        note(f"finished before: {step.folder}")
        return "skipped", 0.0
    resume = step.state() == "interrupted" and not redo
    if resume:
        note(f"going on from {step.checkpoint if step.command == 'fit' else step.folder}")
    elif step.folder.is_dir():
        archive = step.folder.parent.parent / "previous" / step.folder.parent.name
        step.archive(archive)
        note(f"old outputs moved to {archive / step.name}")
    step.begin()
    started = time.perf_counter()
    with _failure_report(step, again), _own_process_state(step), command_line(step.words(resume=resume)):
        run_command(step.words(resume=resume))
    seconds = time.perf_counter() - started
    step.mark(finished=True, seconds=seconds)
    note(f"{step.name} took {seconds:.1f} s")
    return "resumed" if resume else "done", seconds


@contextlib.contextmanager
def _own_process_state(step: Step) -> Iterator[None]:
    """Free the memory of earlier steps, and undo what this one does to environment variables and process groups."""
    if step.command in TRAINER_COMMANDS:
        gc.collect()
    before = dict(os.environ)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
        if "torch.distributed" in sys.modules:
            import torch.distributed

            if torch.distributed.is_available() and torch.distributed.is_initialized():
                torch.distributed.destroy_process_group()


@contextlib.contextmanager
def _failure_report(step: Step, again: str) -> Iterator[None]:
    """Say which step ended early, where it left its outputs, and how to go on."""
    try:
        yield
    except (Exception, KeyboardInterrupt, SystemExit) as error:
        hint = f"  Finished steps are kept; go on with: {again}\n"
        if isinstance(error, KeyboardInterrupt) or isinstance(error.__context__, KeyboardInterrupt):
            sys.stderr.write(f"\nstopped in step `{step.name}` ({step.command}).\n{hint}")
            raise SystemExit(INTERRUPTED_EXIT_CODE) from error
        if isinstance(error, SystemExit) and isinstance(error.code, int) and error.code > SIGNAL_EXIT_CODE:
            sys.stderr.write(f"stopped in step `{step.name}` ({step.command}).\n{hint}")
            raise SystemExit(error.code) from error  # how this step alone would go on is not said
        message = None if wants_traceback() else settings_message(error)
        if message is None:
            traceback.print_exception(error)
        sys.stderr.write(
            f"error: step `{step.name}` ({step.command}) failed: {message or error}\n"
            f"  Outputs so far: {step.folder}\n  This step alone: {step.command_line()}\n{hint}"
        )
        raise SystemExit(1 if message is None else USAGE_EXIT_CODE) from error
