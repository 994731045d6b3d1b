"""Shows what a recipe did: a table of its steps and the parity report."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from lightning_opd.cli.recipe.step import Outcome


def show_summary(outcomes: Sequence[Outcome], console: Console) -> None:
    """Print one line per step, and the parity report if an earlier run wrote it.

    Args:
        outcomes: What became of each step, in order.
        console: Where to print.
    """
    console.rule("[bold]summary[/bold]", align="left")
    table = Table("step", "status", "seconds", "outputs", box=None, pad_edge=False)
    for outcome in outcomes:
        seconds = f"{outcome.seconds:.1f}" if outcome.seconds else "–"
        table.add_row(outcome.step.name, outcome.status, seconds, str(outcome.step.folder))
    table.add_row("total", "", f"{sum(outcome.seconds for outcome in outcomes):.1f}", "")
    console.print(table)
    for outcome in outcomes:
        report = outcome.step.folder / "parity.md"
        if outcome.status == "skipped" and report.is_file():
            console.print(report.read_text(encoding="utf-8"), markup=False, highlight=False, soft_wrap=True)
