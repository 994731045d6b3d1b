"""Writes the parity report: `parity.json`, `parity.md` and `curves.png`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from lightning_opd.analysis.curves import read_curves
from lightning_opd.analysis.figure import draw
from lightning_opd.analysis.markdown import markdown
from lightning_opd.analysis.report import compare
from lightning_opd.analysis.scores import read_models
from lightning_opd.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


def write_report(scores: Sequence[str], output: Path, curves: Path | None, num_resamples: int, seed: int) -> str:
    """Compare models from their scores, write the report, and return its Markdown.

    Args:
        scores: Words such as `student=FILE`; `read_models` says which.
        output: Folder to write to.
        curves: Folder with TensorBoard logs for the picture; None draws the parity alone.
        num_resamples: Bootstrap resamples per 95 % interval.
        seed: Seed of the bootstrap.

    Raises:
        ConfigError: If a file is missing or malformed, or the models cannot be compared. Nothing is written then.
    """
    if num_resamples < 1:
        msg = f"`bootstrap` must be at least 1 resample, got {num_resamples}."
        raise ConfigError(msg)
    models = read_models(scores)
    lines = [] if curves is None else read_curves(curves)
    report = compare(models, num_resamples, seed)
    output.mkdir(parents=True, exist_ok=True)
    text = markdown(report)
    (output / "parity.json").write_text(json.dumps(report.as_dict(), indent=2) + "\n", encoding="utf-8")
    (output / "parity.md").write_text(text, encoding="utf-8")
    draw(report, lines, output / "curves.png")
    return text
