"""The recipe's results as Markdown tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Results = Mapping[str, Any]
"""Name of a step → the content of its JSON."""


def tables(results: Results) -> dict[str, str]:
    """Return every table by name."""
    return {
        "noise": _noise(results["noise"]),
        "slopes": _slopes(results["slopes"]),
        "lrs": _learning_rates(results["convergence"]),
        "convergence": _curves(results["convergence"]),
        "long_horizon_lrs": _learning_rates(results["long_horizon"]),
        "long_horizon": _curves(results["long_horizon"]),
    }


def arms_of(ledger: Results) -> list[str]:
    """Return the arms of a comparison in their order."""
    return [key.removeprefix("lr/") for key in ledger if key.startswith("lr/")]


def curves_of(ledger: Results, arm: str) -> list[list[dict[str, float]]]:
    """Return one list of validations per seed, the untrained student's first."""
    seeds = [key.removeprefix("start/") for key in ledger if key.startswith("start/")]
    return [[ledger[f"start/{seed}"], *ledger[f"run/{arm}/{seed}"]] for seed in seeds]


def rates_of(ledger: Results, arm: str) -> dict[str, float]:
    """Return the solved fraction after the steps that choose the learning rate: learning rate → fraction."""
    prefix = f"choice/{arm}/"
    return {key.removeprefix(prefix): ledger[key][-1]["reward"] for key in ledger if key.startswith(prefix)}


def mean(values: Sequence[float]) -> float:
    """Return the mean."""
    return sum(values) / len(values)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *rows))


def _noise(noise: Results) -> str:
    def cell(row: Mapping[str, float | None], key: str) -> str:
        value, error = row[key], row[f"{key}_error"]
        return "not resolved" if value is None or error is None else f"{value:.2f} ± {error:.2f}"

    rows = [
        [
            name,
            *(cell(noise[when][name], key) for key in ("noise_to_signal", "cosine") for when in ("start", "midway")),
        ]
        for name in noise["start"]
    ]
    header = ["estimator", "noise/signal, start", "midway", "cosine to ∇KL(sequence), start", "midway"]
    return _table(header, rows)


def _slopes(slopes: Results) -> str:
    horizons = slopes["horizons"]
    base = [mean([own[i] for own in slopes["variances"]["immediate"]]) for i in range(len(horizons))]
    rows = []
    for name, own in slopes["slopes"].items():
        means = [mean([row[i] for row in slopes["variances"][name]]) for i in range(len(horizons))]
        ratios = [f"{value / one:.1f}" for value, one in zip(means, base, strict=True)]
        rows.append([name, f"**{mean(own):.2f}**", f"{min(own):.2f}–{max(own):.2f}", *ratios])
    return _table(["estimator", "slope", "range", *(f"variance ÷ immediate, T = {t}" for t in horizons)], rows)


def _learning_rates(ledger: Results) -> str:
    arms = arms_of(ledger)
    rows = []
    for arm in arms:
        chosen = f"{ledger[f'lr/{arm}']:g}"
        rates = rates_of(ledger, arm)
        rows.append([arm, *(f"**{value:.3f}**" if lr == chosen else f"{value:.3f}" for lr, value in rates.items())])
    return _table(["arm", *(f"lr {lr}" for lr in rates_of(ledger, arms[0]))], rows)


def _curves(ledger: Results) -> str:
    rows = []
    for arm in arms_of(ledger):
        curves = curves_of(ledger, arm)
        steps = [point["step"] for point in curves[0]]
        outcomes = [mean([curve[i]["reward"] for curve in curves]) for i in range(len(steps))]
        last = [curve[-1]["reward"] for curve in curves]
        kls = [curve[-1]["teacher_kl"] for curve in curves]
        rows.append(
            [
                arm,
                f"{ledger[f'lr/{arm}']:g}",
                *(f"{value:.3f}" for value in outcomes[:-1]),
                f"**{outcomes[-1]:.3f}**",
                f"{min(last):.3f}–{max(last):.3f}",
                f"{mean(kls):.3f}",
                f"{min(kls):.3f}–{max(kls):.3f}",
            ]
        )
    places = [f"step {int(step)}" for step in steps]
    return _table(["arm", "lr", *places, "range", f"KL, step {int(steps[-1])}", "range"], rows)
