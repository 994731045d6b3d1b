"""Puts the results of the other steps into tables and one picture."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from tables import Results, arms_of, curves_of, mean, tables

STEPS = ("noise", "slopes", "convergence", "long_horizon")


def read(results: Path) -> dict[str, Results]:
    """Return the results of each step."""
    return {name: json.loads((results / name / f"{name}.json").read_text(encoding="utf-8")) for name in STEPS}


def main(seed: int, results: str, output: str) -> None:
    """Write `estimators.md` and `estimators.png`.

    Args:
        seed: Not used; nothing is drawn at random.
        results: Folder with the other steps' outputs.
        output: Folder to write to.
    """
    content, folder = read(Path(results)), Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    parts = [f"## {name}\n\n{table}\n" for name, table in tables(content).items()]
    (folder / "estimators.md").write_text("\n".join(parts), encoding="utf-8")
    draw(content, folder / "estimators.png")


def draw(results: Results, path: Path) -> None:
    """Draw all panels into one file."""
    figure = Figure(figsize=(13.2, 7.2), layout="constrained")
    FigureCanvasAgg(figure)
    (noise, slopes, rates), (reward, kl, chain) = figure.subplots(2, 3)
    _draw_noise(noise, results["noise"])
    _draw_slopes(slopes, results["slopes"])
    _draw_rates(rates, results["convergence"])
    _draw_curves(reward, results["convergence"], "reward", "Solved validation prompts", "fraction")
    _draw_curves(kl, results["convergence"], "teacher_kl", "KL(student ‖ teacher), validation", "nats per token")
    _draw_curves(chain, results["long_horizon"], "reward", "Long horizon: solved validation prompts", "fraction")
    kl.set_yscale("log")
    reward.legend(fontsize=6, frameon=False)
    chain.legend(fontsize=6, frameon=False)
    figure.savefig(path, dpi=130)


def _draw_noise(axis: Axes, noise: Results) -> None:
    names = list(noise["start"])
    for offset, (when, color) in enumerate((("start", "#4c78a8"), ("midway", "#f58518"))):
        values = [noise[when][name]["noise_to_signal"] or 0.0 for name in names]
        places = [i + 0.4 * offset for i in range(len(names))]
        axis.barh(places, values, height=0.38, color=color, label=when)
    axis.set_yticks([i + 0.2 for i in range(len(names))], names)
    axis.invert_yaxis()
    axis.legend(fontsize=7, frameon=False)
    _title(axis, "Noise/signal of one rollout batch's gradient", "ratio", "")


def _draw_slopes(axis: Axes, slopes: Results) -> None:
    for name, rows in slopes["variances"].items():
        means = [mean([row[i] for row in rows]) for i in range(len(slopes["horizons"]))]
        label = f"{name}: {mean(slopes['slopes'][name]):.2f}"
        axis.plot(slopes["horizons"], means, marker="o", markersize=3, label=label)
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    axis.legend(fontsize=6, frameon=False, title="slope", title_fontsize=6)
    _title(axis, "Variance on the Markov toy", "horizon in tokens", "nats²")


def _draw_rates(axis: Axes, ledger: Results) -> None:
    for arm in arms_of(ledger):
        prefix = f"choice/{arm}/"
        tried = {float(k.removeprefix(prefix)): ledger[k][-1]["reward"] for k in ledger if k.startswith(prefix)}
        axis.plot(list(tried), list(tried.values()), marker="o", markersize=3)
    axis.set_xscale("log")
    _title(axis, "Solved after the steps of choice, first seed", "learning rate", "fraction")


def _draw_curves(axis: Axes, ledger: Results, metric: str, title: str, unit: str) -> None:
    for arm in arms_of(ledger):
        curves = curves_of(ledger, arm)
        steps = [point["step"] for point in curves[0]]
        by_step: Sequence[list[float]] = [[curve[i][metric] for curve in curves] for i in range(len(steps))]
        (line,) = axis.plot(steps, [mean(values) for values in by_step], label=arm, linewidth=1.3)
        lows, highs = [min(values) for values in by_step], [max(values) for values in by_step]
        axis.fill_between(steps, lows, highs, color=line.get_color(), alpha=0.12, linewidth=0)
    _title(axis, title, "optimiser step", unit)


def _title(axis: Axes, title: str, x: str, y: str) -> None:
    axis.set_title(title, fontsize=10)
    axis.set_xlabel(x, fontsize=8)
    axis.set_ylabel(y, fontsize=8)
    axis.tick_params(labelsize=7)
    axis.grid(visible=True, linewidth=0.3)
    axis.spines[["top", "right"]].set_visible(False)
