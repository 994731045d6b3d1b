"""Draws the training curves as small multiples, with a bar panel of the parity beside them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_opd.errors import MissingPackageError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from matplotlib.axes import Axes

    from lightning_opd.analysis.curves import Curve
    from lightning_opd.analysis.report import Report

PANELS = {
    "train/teacher_kl": ("KL(student ‖ teacher), training", "nats per token"),
    "val/teacher_kl": ("KL(student ‖ teacher), validation", "nats per token"),
    "val/reward": ("Solved validation prompts", "fraction"),
    "train/reward": ("Solved training prompts", "fraction"),
    "train/format_errors": ("Malformed training answers", "fraction"),
    "val/format": ("Well-formed validation answers", "fraction"),
    "train/loss": ("Training loss", "loss"),
    "val/loss": ("Validation loss", "nats per token"),
}
"""Quantity (the first two parts of a tag) → title and unit; the rest of the tag names the line."""

_COLUMNS = 3
_MANY_CELLS = 4


def draw(report: Report, curves: Sequence[Curve], path: Path) -> None:
    """Draw the report and save it as a picture.

    Args:
        report: The parity report.
        curves: Training curves; those of an unknown quantity are left out.
        path: Picture to write.

    Raises:
        MissingPackageError: If matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        msg = "`curves` draws with matplotlib: `pip install matplotlib`."
        raise MissingPackageError(msg) from error

    panels = {name: lines for name in PANELS if (lines := [curve for curve in curves if _quantity(curve.tag) == name])}
    num_rows = -(-(len(panels) + 1) // _COLUMNS)
    figure = Figure(figsize=(4.4 * _COLUMNS, 3.2 * num_rows), layout="constrained")
    FigureCanvasAgg(figure)
    axes = list(figure.subplots(num_rows, _COLUMNS, squeeze=False).flat)
    _draw_parity(axes[0], report)
    for axis, (name, lines) in zip(axes[1:], panels.items(), strict=False):
        _draw_panel(axis, name, lines)
    for axis in axes[len(panels) + 1 :]:
        axis.set_axis_off()
    figure.savefig(path, dpi=150)


def _quantity(tag: str) -> str:
    return "/".join(tag.removesuffix("_step").split("/")[:2])


def _draw_panel(axis: Axes, name: str, lines: Sequence[Curve]) -> None:
    title, unit = PANELS[name]
    several_runs = len({line.run for line in lines}) > 1
    for line in lines:
        part = line.tag[len(name) :].strip("/") or "all"
        axis.plot(line.steps, line.values, label=f"{line.run}: {part}" if several_runs else part, linewidth=1.2)
    axis.set_title(title, fontsize=10)
    axis.set_xlabel("optimiser step", fontsize=8)
    axis.set_ylabel(unit, fontsize=8)
    if unit == "fraction":
        axis.set_ylim(-0.02, 1.02)
    _tidy(axis)
    if len(lines) > 1:
        axis.legend(fontsize=7, frameon=False)


def _draw_parity(axis: Axes, report: Report) -> None:
    rows = [row for row in report.cells if row.parity.value is not None]
    values = [row.parity.value or 0.0 for row in rows]
    lows = [value - (row.parity.low or 0.0) for value, row in zip(values, rows, strict=True)]
    highs = [(row.parity.high or 0.0) - value for value, row in zip(values, rows, strict=True)]
    axis.bar(range(len(rows)), values, yerr=[lows, highs], color="#4c78a8", ecolor="#333333", capsize=2, width=0.7)
    axis.axhline(1.0, color="#333333", linewidth=0.8)
    labels = [f"{row.cell.domain}\n{row.cell.split}, {row.cell.mode}" for row in rows]
    tilt = 45 if len(rows) > _MANY_CELLS else 0
    axis.set_xticks(range(len(rows)), labels, rotation=tilt, ha="right" if tilt else "center")
    axis.set_title("Parity with the teacher", fontsize=10)
    axis.set_ylabel("student ÷ teacher", fontsize=8)
    _tidy(axis)


def _tidy(axis: Axes) -> None:
    axis.tick_params(labelsize=7)
    axis.grid(visible=True, axis="y", linewidth=0.3)
    axis.spines[["top", "right"]].set_visible(False)
