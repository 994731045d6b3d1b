"""Draws the picture of a report: every model's scores per domain with intervals, and the training curves."""

from __future__ import annotations

import functools
import itertools
import math
import textwrap
from typing import TYPE_CHECKING

import numpy as np

from lightning_opd.errors import MissingPackageError
from lightning_opd.tokenization.visible import visible

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    import numpy.typing as npt
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from lightning_opd.analysis.bootstrap import Interval
    from lightning_opd.analysis.curves import Curve
    from lightning_opd.analysis.report import CellReport, Report

PANELS = {
    "train/teacher_kl": ("KL(student ‖ teacher), training", "nats per token"),
    "val/teacher_kl": ("KL(student ‖ teacher), validation", "nats per token"),
    "val/reward": ("Reward, validation prompts", "mean reward"),
    "train/reward": ("Reward, training prompts", "mean reward"),
    "train/format_errors": ("Malformed training answers", "fraction"),
    "val/format": ("Well-formed validation answers", "fraction"),
    "train/loss": ("Training loss", "loss"),
    "val/loss": ("Validation loss", "nats per token"),
}
"""Quantity (the first two parts of a tag) → title and unit; the rest of the tag names the line."""

COLOURS = {
    "student": "#2b6cb0",
    "teacher": "#3a3a3a",
    "base": "#b8b8b8",
    "average": "#dd8452",
    "task arithmetic": "#55a868",
}
_OTHERS = ("#8172b3", "#c44e52", "#937860", "#da8bc3", "#64b5cd")
_COLUMNS, _GRID = 3, 6  # columns of the figure; of the grid, which any number of panels up to three divides
_NUM_SMOOTHED = 20
"""From so many points on a curve is smoothed, over a twentieth of its length on either side."""
_LABEL_WIDTH = 14
_LEAST_RANGE, _HALF, _EDGE = 0.1, 0.5, 0.004
"""Least height of a panel of fractions, what tells small from large ones, and the space around them."""


def draw(report: Report, curves: Sequence[Curve], path: Path) -> None:
    """Draw the report and save it as a picture.

    Args:
        report: The parity report.
        curves: Training curves; those of an unknown quantity, and quantities that never change, are left out.
        path: Picture to write.

    Raises:
        MissingPackageError: If matplotlib is not installed.
    """
    figure_of(report, curves).savefig(path, dpi=150)


def figure_of(report: Report, curves: Sequence[Curve]) -> Figure:
    """Return the figure that `draw` saves, with as many places as there are panels."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        msg = "`curves` draws with matplotlib: `pip install matplotlib`."
        raise MissingPackageError(msg) from error

    panels = _panels(report, curves)
    rows = _rows(len(panels))
    figure = Figure(figsize=(4.4 * _COLUMNS, 3.3 * len(rows) + 0.4), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(len(rows), _GRID)
    places = [(row, column, _GRID // count) for row, count in enumerate(rows) for column in range(count)]
    for (row, column, width), panel in zip(places, panels, strict=True):
        panel(figure.add_subplot(grid[row, column * width : (column + 1) * width]))
    named = [zip(*axis.get_legend_handles_labels(), strict=True) for axis in figure.axes if axis.containers]
    bars = {name: handle for pairs in named for handle, name in pairs}
    figure.legend(bars.values(), bars, loc="outside upper center", ncols=len(bars), fontsize=9, frameon=False)
    return figure


def _panels(report: Report, curves: Sequence[Curve]) -> list[Callable[[Axes], None]]:
    """Return what draws each panel: scores per split and mode, then one for each quantity that was logged."""
    groups: dict[tuple[str, str], list[CellReport]] = {}
    for cell in report.cells:
        groups.setdefault((cell.cell.split, cell.cell.mode), []).append(cell)
    panels: list[Callable[[Axes], None]] = [
        functools.partial(_draw_scores, cells=cells) for _, cells in sorted(groups.items())
    ]
    finite = [curve for curve in curves if any(math.isfinite(value) for value in curve.values)]
    for name in PANELS:
        lines = [curve for curve in finite if _quantity(curve.tag) == name]
        if len({value for line in lines for value in line.values}) > 1:  # one value all along is nothing to look at
            panels.append(functools.partial(_draw_curves, name=name, lines=lines))
    return panels


def _rows(num_panels: int) -> list[int]:
    """Return how many panels each row has: at most three, as even as can be, so that no place stays empty."""
    num_rows = -(-num_panels // _COLUMNS)
    return [num_panels // num_rows + (row < num_panels % num_rows) for row in range(num_rows)]


def _draw_scores(axis: Axes, cells: Sequence[CellReport]) -> None:
    """Draw the mean reward of every model per domain, with its 95 % interval."""
    models = [_models(cell) for cell in cells]
    names = list(dict.fromkeys(name for model in models for name in model))
    width = 0.84 / len(names)
    for place, name in enumerate(names):
        known = [(x + (place - (len(names) - 1) / 2) * width, m[name]) for x, m in enumerate(models) if name in m]
        values = [_number(interval.value) for _, interval in known]
        lows = [value - _number(interval.low, value) for value, (_, interval) in zip(values, known, strict=True)]
        highs = [_number(interval.high, value) - value for value, (_, interval) in zip(values, known, strict=True)]
        bars = axis.bar(
            [x for x, _ in known],
            values,
            width * 0.92,
            yerr=[lows, highs],
            label=name,
            color=_colour(name, names),
            error_kw={"linewidth": 0.9, "capsize": 2, "ecolor": "#222222"},
        )
        if name in ("student", "teacher"):
            axis.bar_label(bars, [f"{value:.2f}" for value in values], fontsize=6.5, padding=1)
    axis.set_xticks(range(len(cells)), [_wrapped(cell.cell.domain) for cell in cells])
    counts = sorted({cell.num_prompts for cell in cells})
    shown = f"n = {counts[0]:,}" + (f" to {counts[-1]:,}" if len(counts) > 1 else "")
    split, mode = visible(cells[0].cell.split), visible(cells[0].cell.mode)
    axis.set_title(f"Scores on {split} prompts, {mode} ({shown})", fontsize=10)
    axis.set_ylabel("mean reward", fontsize=8)
    _bound(axis, [interval.value for model in models for interval in model.values()])
    _tidy(axis)


def _models(cell: CellReport) -> dict[str, Interval]:
    """Return every model's score in the order in which they are drawn."""
    own = {name.replace("_", " "): interval for name, (interval, _) in cell.baselines.items()}
    known = {"base": own.pop("base", None), "student": cell.student, "teacher": cell.teacher, **own}
    return {visible(name): interval for name, interval in known.items() if interval and interval.value is not None}


def _number(value: float | None, otherwise: float = 0.0) -> float:
    return otherwise if value is None else value


def _colour(name: str, names: Sequence[str]) -> str:
    others = [other for other in names if other not in COLOURS]
    return COLOURS[name] if name in COLOURS else _OTHERS[others.index(name) % len(_OTHERS)]


def _wrapped(text: str) -> str:
    return "\n".join(textwrap.wrap(visible(text), _LABEL_WIDTH)) or "all"


def _quantity(tag: str) -> str:
    return "/".join(tag.removesuffix("_step").split("/")[:2])


def _draw_curves(axis: Axes, name: str, lines: Sequence[Curve]) -> None:
    """Draw the lines of one quantity; long ones faintly as they are, and smoothed above."""
    title, unit = PANELS[name]
    several_runs = len({line.run for line in lines}) > 1
    for line, colour in zip(lines, itertools.cycle((COLOURS["teacher"], *_OTHERS)), strict=False):
        part = line.tag.removesuffix("_step")[len(name) :].strip("/") or "all"
        label = visible(f"{line.run}: {part}" if several_runs else part)
        values = np.array(line.values)
        is_long = len(values) >= _NUM_SMOOTHED
        mark = "" if is_long else "o"
        smooth = smoothed(values, len(values) // 20) if is_long else values
        axis.plot(line.steps, smooth, label=label, color=colour, linewidth=1.6, marker=mark, markersize=3)
        if is_long:
            axis.plot(line.steps, values, color=colour, linewidth=0.6, alpha=0.3)
    axis.set_title(title, fontsize=10)
    axis.set_xlabel("optimiser step", fontsize=8)
    axis.set_ylabel(unit, fontsize=8)
    axis.set_xlim(left=0)
    if unit == "mean reward":
        _bound(axis, [value for line in lines for value in line.values])
    elif unit == "fraction":
        low, high = min(min(line.values) for line in lines), max(max(line.values) for line in lines)
        margin = max(0.0, _LEAST_RANGE - (high - low))  # small changes stay small to the eye
        axis.set_ylim(low - margin * (high > _HALF) - _EDGE, high + margin * (high <= _HALF) + _EDGE)
    elif unit == "nats per token":
        axis.set_ylim(bottom=0.0)
    _tidy(axis)
    if len(lines) > 1:
        axis.legend(fontsize=7, frameon=False)


def smoothed(values: npt.NDArray[np.float64], radius: int) -> npt.NDArray[np.float64]:
    """Return the mean over each point and up to `radius` on either side; values that are not finite are left out.

    At both ends the neighbourhood stays centred and becomes smaller, so that the curve begins and ends where the
    values do.

    Args:
        values: One per point.
        radius: Points on either side.
    """
    reach = [min(radius, i, len(values) - 1 - i) for i in range(len(values))]
    parts = [values[i - r : i + r + 1] for i, r in enumerate(reach)]
    means = [part[np.isfinite(part)].mean() if np.isfinite(part).any() else np.nan for part in parts]
    return np.array(means, dtype=np.float64)


def _bound(axis: Axes, values: Sequence[float | None]) -> None:
    """Show the whole range from 0 to 1 where all values lie inside."""
    if all(value is None or not math.isfinite(value) or 0 <= value <= 1 for value in values):
        axis.set_ylim(0, 1.06)


def _tidy(axis: Axes) -> None:
    axis.tick_params(labelsize=7.5)
    axis.set_axisbelow(True)
    axis.grid(visible=True, axis="y", linewidth=0.3)
    axis.spines[["top", "right"]].set_visible(False)
