"""A report on the console: a table on a terminal, a line for each check elsewhere."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from lightning_opd.preflight.report import Report, Status
from lightning_opd.tokenization.visible import visible

if TYPE_CHECKING:
    from rich.table import Table

STYLES = {Status.PASSED: "green", Status.NOTE: "yellow", Status.FAILED: "bold red"}


def show(report: Report) -> None:
    """Show a report on the standard output."""
    from rich.console import Console

    console = Console(file=sys.stdout)
    if console.is_terminal:
        console.print(_table(report))
    else:
        sys.stdout.writelines(
            f"{check.status.value:<6}  {visible(check.name)}: {visible(check.text)}\n" for check in report.checks
        )
    sys.stdout.write(f"{summary(report)}\n")


def summary(report: Report) -> str:
    """Return how a preflight ended, in one line."""
    num_failed, num_all = len(report.failed), len(report.checks)
    if num_failed:
        return f"Preflight: {num_failed} of {num_all} checks failed."
    notes = sum(check.status is Status.NOTE for check in report.checks)
    return f"Preflight: all {num_all} checks passed" + (f", {notes} with a note." if notes else ".")


def _table(report: Report) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE, show_edge=False, pad_edge=False)
    table.add_column("", no_wrap=True)
    table.add_column("check", max_width=24)
    table.add_column("result", ratio=1)
    for check in report.checks:
        table.add_row(
            Text(check.status.value, STYLES[check.status]), Text(visible(check.name)), Text(visible(check.text))
        )
    return table
