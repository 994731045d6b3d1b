from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lightning_opd.analysis.bootstrap import Interval
from lightning_opd.analysis.curves import Curve
from lightning_opd.analysis.figure import _rows, draw, figure_of, smoothed
from lightning_opd.analysis.report import CellReport, Report
from lightning_opd.analysis.scores import Cell

HALF = Interval(0.5, 0.4, 0.6)


def report(domains: tuple[str, ...] = ("code", "math"), modes: tuple[str, ...] = ("greedy",)) -> Report:
    baselines = {name: (Interval(0.3, 0.2, 0.45), 100) for name in ("base", "average", "task_arithmetic", "mine")}
    cells = [
        CellReport(Cell(domain, "test", mode), 100, HALF, Interval(0.9, 0.85, 0.95), HALF, baselines)
        for mode in modes
        for domain in domains
    ]
    return Report(tuple(cells), {})


def curve(tag: str, *values: float) -> Curve:
    return Curve(".", tag, tuple(range(1, len(values) + 1)), values)


def test_every_model_has_a_bar_with_its_interval_in_every_domain() -> None:
    figure = figure_of(report(), [])
    [axis] = figure.axes
    containers: list[Any] = list(axis.containers)
    bars = {bar.get_label(): bar for bar in containers if not bar.get_label().startswith("_")}
    assert list(bars) == ["base", "student", "teacher", "average", "task arithmetic", "mine"]
    assert [patch.get_height() for patch in bars["student"]] == [0.5, 0.5]
    for name, (low, high) in {"student": (0.4, 0.6), "teacher": (0.85, 0.95), "mine": (0.2, 0.45)}.items():
        [segments] = [lines.get_segments() for lines in bars[name].errorbar.lines[2]]
        assert [segment[:, 1].tolist() for segment in segments] == [pytest.approx([low, high])] * 2
    assert [text.get_text() for text in axis.get_xticklabels()] == ["code", "math"]
    assert "test" in axis.get_title()
    assert "n = 100" in axis.get_title()
    [legend] = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == list(bars)
    places = sorted(patch.get_x() for bar in bars.values() for patch in bar)
    widths = {patch.get_width() for bar in bars.values() for patch in bar}
    assert min(np.diff(places)) >= max(widths)  # no bar covers another


def test_a_model_without_a_score_or_an_interval_leaves_its_place_free() -> None:
    cells = list(report().cells)
    cells[0] = dataclasses.replace(cells[0], baselines={}, teacher=Interval(None, None, None))
    cells[1] = dataclasses.replace(cells[1], student=Interval(1.0, None, None))
    [axis] = figure_of(Report(tuple(cells), {}), []).axes
    bars: dict[str, Any] = {str(bar.get_label()): bar for bar in axis.containers}
    assert len(bars["teacher"]) == len(bars["base"]) == 1
    assert len(bars["student"]) == 2


@pytest.mark.parametrize("num_panels", range(1, 14))
def test_no_place_stays_empty(num_panels: int) -> None:
    rows = _rows(num_panels)
    assert sum(rows) == num_panels
    assert set(rows) <= {1, 2, 3}
    assert max(rows) - min(rows) <= 1
    modes = tuple(f"mode{i}" for i in range(num_panels))
    figure = figure_of(report(modes=modes), [])
    assert len(figure.axes) == num_panels
    for row in {axis.get_subplotspec().rowspan.start for axis in figure.axes}:  # type: ignore[union-attr]
        own = [axis.get_subplotspec().colspan for axis in figure.axes if axis.get_subplotspec().rowspan.start == row]  # type: ignore[union-attr]
        assert [column for span in own for column in span] == list(range(6))


def test_quantities_that_say_nothing_get_no_panel() -> None:
    curves = [
        curve("train/reward", 0.1, 0.2),
        curve("train/reward/math", 0.1, 0.3),
        curve("train/format_errors", 0.0, 0.0, 0.0),
        curve("train/loss_step", float("nan"), float("nan")),
        curve("epoch", 0.0, 1.0),
    ]
    figure = figure_of(report(), curves)
    assert [axis.get_title() for axis in figure.axes[1:]] == ["Reward, training prompts"]
    assert [text.get_text() for text in figure.axes[1].get_legend().get_texts()] == ["all", "math"]  # type: ignore[union-attr]
    assert len(figure.axes[1].lines) == 2  # so few points are shown as they are


def test_a_long_curve_is_smoothed_over_the_values_themselves() -> None:
    noise = np.random.default_rng(0).normal(0, 0.05, 200)
    values = np.linspace(0.2, 0.8, 200) + noise
    [axis] = figure_of(report(), [curve("train/reward", *values)]).axes[1:]
    smooth, raw = (np.asarray(line.get_ydata()) for line in axis.lines)
    assert raw == pytest.approx(values)
    assert np.abs(smooth - np.linspace(0.2, 0.8, 200))[10:-10].max() < 0.04
    assert (smooth[0], smooth[-1]) == (values[0], values[-1])


def test_smoothing_keeps_lines_straight_and_leaves_out_what_is_not_finite() -> None:
    line = np.arange(30.0)
    assert smoothed(line, 5) == pytest.approx(line)
    line[10] = np.nan
    assert np.isfinite(smoothed(line, 5)).all()
    assert smoothed(line, 5)[20:] == pytest.approx(np.arange(20.0, 30.0))
    assert smoothed(np.array([1.0, np.nan, 1.0]), 0)[1] != smoothed(np.array([1.0, 1.0, 1.0]), 0)[1]


def test_small_changes_of_a_fraction_stay_small() -> None:
    curves = [curve("val/format", 0.99, 1.0, 0.995), curve("train/format_errors", 0.0, 0.01)]
    errors, valid = figure_of(report(), curves).axes[1:]
    for axis in (errors, valid):
        low, high = axis.get_ylim()
        assert high - low >= 0.1
    assert errors.get_ylim()[0] == pytest.approx(0, abs=0.01)
    assert valid.get_ylim()[1] == pytest.approx(1, abs=0.01)


def test_names_from_data_are_drawn_without_control_characters(tmp_path: Path) -> None:
    figure = figure_of(report(domains=("\x1b[31mred\u202e", "a domain with a very long name")), [])
    labels = [text.get_text() for text in figure.axes[0].get_xticklabels()]
    assert labels[0] == "\\x1b[31mred\\u2\n02e"
    assert labels[1] == "a domain with\na very long\nname"
    draw(report(), [], tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
