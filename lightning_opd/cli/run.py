"""The command `run`."""

from __future__ import annotations

import contextlib
import gc
import os
import sys
import time
import traceback
from typing import TYPE_CHECKING

from lightning_opd.cli.commands import command_line, run_command
from lightning_opd.cli.errors import INTERRUPTED_EXIT_CODE, USAGE_EXIT_CODE, settings_message, wants_traceback
from lightning_opd.cli.recipe.spec import find_recipe, read_recipe
from lightning_opd.cli.recipe.step import Outcome, State, Step, resolve
from lightning_opd.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rich.console import Console


def run(
    recipe: str,
    /,
    seed: int = 0,
    output: str = "runs",
    until: str | None = None,
    from_: str | None = None,
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

    from lightning_opd.cli.recipe.summary import show_summary

    plan = read_recipe(find_recipe(recipe))
    redo = len(plan.steps) if from_ is None else plan.position(from_)
    last = len(plan.steps) if until is None else plan.position(until) + 1
    if redo >= last and from_ is not None:
        msg = f"`from` ({from_}) comes after `until` ({until}) in recipe `{plan.name}`; there is nothing to run."
        raise ConfigError(msg)
    console = Console()
    steps = resolve(plan, output, seed)
    again = _again(recipe, seed, output, until)
    outcomes: list[Outcome] = []
    for index, step in enumerate(steps[:last]):
        console.rule(f"[bold]\\[{index + 1}/{len(steps)}] {step.name}[/bold] · {step.command}", align="left")
        outcomes.append(_run_step(step, console, again, redo=index >= redo))
    show_summary(outcomes, console)


def _run_step(step: Step, console: Console, again: str, *, redo: bool) -> Outcome:
    """Bring one step to its end: skip, resume, or run it anew."""
    state = step.state()
    if state is State.FINISHED and not redo:
        console.print(f"finished before: {step.folder}", style="dim", highlight=False, soft_wrap=True)
        return Outcome(step, "skipped", 0.0)
    resume = state is State.INTERRUPTED and not redo
    if step.folder.is_dir() and not resume:
        archive = step.folder.parent.parent / "previous" / step.folder.parent.name
        step.archive(archive)
        console.print(f"old outputs moved to {archive / step.name}", style="dim", highlight=False, soft_wrap=True)
    if resume:
        console.print(
            f"going on from {step.checkpoint if step.command == 'fit' else step.folder}",
            style="dim",
            highlight=False,
            soft_wrap=True,
        )
    step.begin()
    started = time.perf_counter()
    with _failure_report(step, again), _own_process_state(), command_line(step.words(resume=resume)):
        run_command(step.words(resume=resume))
    seconds = time.perf_counter() - started
    step.finish(seconds)
    console.print(f"{step.name} took {seconds:.1f} s", style="dim", highlight=False)
    return Outcome(step, "resumed" if resume else "done", seconds)


@contextlib.contextmanager
def _own_process_state() -> Iterator[None]:
    """Undo what one step leaves behind in the process: environment variables, a process group, memory."""
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
        gc.collect()


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
        message = None if wants_traceback() else settings_message(error)
        if message is None:
            traceback.print_exception(error)
        sys.stderr.write(
            f"error: step `{step.name}` ({step.command}) failed: {message or error}\n"
            f"  Outputs so far: {step.folder}\n  This step alone: {step.command_line()}\n{hint}"
        )
        raise SystemExit(1 if message is None else USAGE_EXIT_CODE) from error


def _again(recipe: str, seed: int, output: str, until: str | None) -> str:
    words: Sequence[str] = ["python -m lightning_opd run", recipe]
    options = {"seed": seed if seed else None, "output": output if output != "runs" else None, "until": until}
    return " ".join([*words, *(f"--{name} {value}" for name, value in options.items() if value is not None)])
