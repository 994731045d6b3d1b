"""The command `parity`."""

from __future__ import annotations

from pathlib import Path

from lightning_opd.cli.report import show_report
from lightning_opd.options.outputs import check_output


def parity(scores: list[str], /, output: str, curves: str | None = None, bootstrap: int = 2000, seed: int = 0) -> None:
    """Compare student, teachers and baselines, prompt by prompt.

    Joins the `scores.json` files that the command `test` writes and writes `parity.json`, `parity.md` and `curves.png`.
    Parity is the student's mean reward over that of each prompt's own teacher, on the prompts both answered.

    Args:
        scores: student=FILE teacher.NAME=FILE ... and, if any, base=FILE average=FILE task_arithmetic=FILE
            ties=FILE other.NAME=FILE ...
        output: Folder to write to.
        curves: Folder with TensorBoard logs, searched with its subfolders, for the training curves in `curves.png`.
        bootstrap: Resamples per 95 % interval.
        seed: Seed of the bootstrap.
    """
    from lightning_opd.analysis.write import write_report

    check_output(Path(output), "output")
    show_report(write_report(scores, Path(output), None if curves is None else Path(curves), bootstrap, seed))
