"""Writes the parity report for people: one table per split and mode, and a reward."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_opd.tokenization.visible import visible

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lightning_opd.analysis.bootstrap import Interval
    from lightning_opd.analysis.report import CellReport, Report

PARITY = 0.99
"""Student ÷ teacher from which a domain counts as merged."""


def markdown(report: Report) -> str:
    """Return the report as Markdown."""
    groups: dict[tuple[str, str], list[CellReport]] = {}
    for row in report.cells:
        groups.setdefault((row.cell.split, row.cell.mode), []).append(row)
    parts = [
        "# Parity",
        conclusion(report),
        *(_table(split, mode, rows) for (split, mode), rows in sorted(groups.items())),
    ]
    return "\n\n".join([*parts, *_experts(report)]) + "\n"


def conclusion(report: Report) -> str:
    """Return one line: how many cells reach parity, and which is the weakest."""
    known = [(row.parity.value, row) for row in report.cells if row.parity.value is not None]
    if not known:
        return "No teacher solved a single prompt: there is nothing to compare with."
    reached = sum(value >= PARITY for value, _ in known)
    lowest, weakest = min(known, key=lambda pair: pair[0])
    return (
        f"Parity (student ÷ teacher) is at least {PARITY} in {reached} of {len(report.cells)} cells; "
        f"the lowest is {lowest:.3f} ({weakest.cell})."
    )


def _table(split: str, mode: str, rows: Sequence[CellReport]) -> str:
    given = list(dict.fromkeys(name for row in rows for name in row.baselines))
    header = ["domain", "n", "student", "teacher", "**parity**", *(name.replace("_", " ") for name in given)]
    lines = [
        [
            row.cell.domain,
            str(row.num_prompts),
            _shown(row.student),
            _shown(row.teacher),
            f"**{_shown(row.parity)}**",
            *(_shown(row.baselines[name][0]) if name in row.baselines else "–" for name in given),
        ]
        for row in rows
    ]
    caption = f"Fraction of {split} prompts solved, {mode}; 95 % bootstrap intervals, paired by prompt."
    return f"## {split}, {mode}\n\n{caption}\n\n{_grid(header, lines)}"


def _experts(report: Report) -> list[str]:
    cells = sorted({cell for values in report.experts.values() for cell in values})
    names = list(report.experts)
    if not any(len({cell.domain for cell in values}) > 1 for values in report.experts.values()):
        return []
    lines = [
        [str(cell), *(f"{report.experts[name][cell]:.3f}" if cell in report.experts[name] else "–" for name in names)]
        for cell in cells
    ]
    return [f"## Experts on every domain\n\n{_grid(['prompts', *names], lines)}"]


def _grid(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    shown = [[visible(cell).replace("|", "\\|").replace("\n", " ") for cell in row] for row in (header, *lines)]
    rows = [shown[0], ["---"] * len(header), *shown[1:]]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _shown(interval: Interval) -> str:
    if interval.value is None:
        return "undefined"
    if interval.low is None or interval.high is None:
        return f"{interval.value:.3f}"
    return f"{interval.value:.3f} [{interval.low:.3f}, {interval.high:.3f}]"
