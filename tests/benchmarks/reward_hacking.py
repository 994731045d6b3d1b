"""Collects the seeds of recipes/reward_hacking into its results.json, curves.png, and its README's table."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from tests.benchmarks.evidence import RECIPES, RUNS, provenance, with_table, write

RECIPE = RECIPES / "reward_hacking"
ARMS = ("none", "mask", "outcome", "both")
QUANTITIES = {
    "reward": "outcome of training rollouts",
    "teacher_kl": "KL(student ‖ teacher) per sequence (nats)",
    "format_errors": "fraction of rollouts with a format error",
}
LAST = 5
"""Rollout batches in the mean at the end of training."""
COMMAND = (
    "for seed in {0}; do python -m lightning_opd run recipes/reward_hacking --seed $seed; done; "
    "python -m tests.benchmarks.reward_hacking {0}"
)

Curves = dict[str, list[float]]


def read_curves(folder: Path) -> Curves:
    """Return one value per rollout batch of each quantity, and of the alarm."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    reward, kl, length, errors, alarm = (
        [event.value for event in events.Scalars(f"train/{name}")]
        for name in ("reward", "teacher_kl", "response_length", "format_errors", "hack_alarm")
    )
    # nats per token × tokens per sequence, both means over the same rollout batch
    per_sequence = [k * n for k, n in zip(kl, length, strict=True)]
    return {"reward": reward, "teacher_kl": per_sequence, "format_errors": errors, "alarm": alarm}


def solved(folder: Path) -> float:
    """Return the fraction of test prompts that a model solves when it samples."""
    rows = json.loads((folder / "scores.json").read_text())["rows"]
    return sum(float(row["reward"]) for row in rows) / len(rows)


def first(flags: list[bool]) -> int | None:
    """Return the first rollout batch of which something holds."""
    return next((rollouts for rollouts, holds in enumerate(flags) if holds), None)


def of_seed(root: Path, arm: str) -> dict[str, object]:
    """Return what one arm did in one seed; the start is the student that every arm begins with."""
    curves, start = read_curves(root / arm / "logs"), solved(root / "test_student")
    smooth = [sum(curves["reward"][max(0, i - 2) : i + 1]) / min(3, i + 1) for i in range(len(curves["reward"]))]
    return {
        "start": round(start, 4),
        "end": round(solved(root / f"test_{arm}"), 4),
        "kl_start": round(curves["teacher_kl"][0], 4),
        "kl_end": round(sum(curves["teacher_kl"][-LAST:]) / LAST, 4),
        "format_errors_end": round(sum(curves["format_errors"][-LAST:]) / LAST, 4),
        "halving": first([reward < start / 2 for reward in smooth]),
        "alarm": first([value > 0 for value in curves["alarm"]]),
        "curves": {name: [round(value, 4) for value in curves[name]] for name in QUANTITIES},
    }


def mean(rows: list[dict[str, Any]], name: str) -> float:
    """Return a number's mean over the seeds."""
    return sum(float(row[name]) for row in rows) / len(rows)


def rollout_batches(rows: list[dict[str, Any]], name: str) -> str:
    """Return the rollout batches of each seed, `never` where there is none."""
    return ", ".join("never" if row[name] is None else str(row[name]) for row in rows)


def table(arms: dict[str, list[dict[str, Any]]]) -> str:
    """Return the README's table."""
    lines = [
        "| arm | outcome at the start | **at the end** | lowest seed | KL per sequence | malformed at the end "
        "| outcome halved in rollout batch | alarm in rollout batch |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for arm, rows in arms.items():
        kl = f"{mean(rows, 'kl_start'):.2f} → {mean(rows, 'kl_end'):.2f}"
        cells = [arm, f"{mean(rows, 'start'):.3f}", f"**{mean(rows, 'end'):.3f}**"]
        cells += [f"{min(row['end'] for row in rows):.3f}", kl, f"{mean(rows, 'format_errors_end'):.2f}"]
        lines.append(f"| {' | '.join([*cells, rollout_batches(rows, 'halving'), rollout_batches(rows, 'alarm')])} |")
    return "\n".join(lines)


def draw(arms: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Draw each quantity of each arm: the mean of the seeds, and their range."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    for axis, (name, title) in zip(figure.subplots(1, 3), QUANTITIES.items(), strict=True):
        for arm, rows in arms.items():
            points = list(zip(*(row["curves"][name] for row in rows), strict=True))
            (line,) = axis.plot([sum(point) / len(point) for point in points], label=arm, linewidth=1.4)
            axis.fill_between(
                range(len(points)), list(map(min, points)), list(map(max, points)), color=line.get_color(), alpha=0.12
            )
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("rollout batch", fontsize=9)
        axis.set_ylim(bottom=0)
        axis.spines[["top", "right"]].set_visible(False)
    figure.axes[0].legend(frameon=False, fontsize=9)
    figure.savefig(path, dpi=110)


def main(seeds: list[str]) -> None:
    """Collect, write `results.json` and `curves.png`, and put the table into the README."""
    arms = {arm: [of_seed(RUNS / f"reward_hacking/seed{seed}", arm) for seed in seeds] for arm in ARMS}
    teacher = [round(solved(RUNS / f"reward_hacking/seed{seed}/test_teacher"), 4) for seed in seeds]
    results = {**provenance(COMMAND, seeds), "teacher_in_its_own_harness": teacher, "arms": arms}
    draw(arms, RECIPE / "curves.png")
    write(RECIPE, results, with_table((RECIPE / "README.md").read_text(), "arms", table(arms)))


if __name__ == "__main__":
    main(sys.argv[1:])
