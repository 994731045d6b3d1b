"""The command `parity`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from lightning_opd.errors import ConfigError


def parity(
    scores: list[str],
    /,
    output: str,
    curves: str | None = None,
    bootstrap: int = 2000,
    seed: int = 0,
) -> None:
    """Compare student, teachers and baselines, prompt by prompt.

    Joins the `scores.json` files that the command `test` writes and writes `parity.json`, `parity.md` and `curves.png`.
    Parity is the student's mean outcome over that of each prompt's own teacher, on the prompts both answered.

    Args:
        scores: student=FILE teacher.NAME=FILE ... and, if any, base=FILE average=FILE task_arithmetic=FILE
            other.NAME=FILE ...
        output: Folder to write to.
        curves: Folder with TensorBoard logs, searched with its subfolders, for the training curves in `curves.png`.
        bootstrap: Resamples per 95 % interval.
        seed: Seed of the bootstrap.
    """
    from lightning_opd.analysis.curves import read_curves
    from lightning_opd.analysis.figure import draw
    from lightning_opd.analysis.markdown import markdown
    from lightning_opd.analysis.report import compare
    from lightning_opd.analysis.scores import read_models

    if bootstrap < 1:
        msg = f"`bootstrap` must be at least 1 resample, got {bootstrap}."
        raise ConfigError(msg)
    models = read_models(scores)
    lines = [] if curves is None else read_curves(Path(curves))
    report = compare(models, num_resamples=bootstrap, seed=seed)
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    text = markdown(report)
    (folder / "parity.json").write_text(json.dumps(report.as_dict(), indent=2) + "\n", encoding="utf-8")
    (folder / "parity.md").write_text(text, encoding="utf-8")
    draw(report, lines, folder / "curves.png")
    sys.stdout.write(text)
