"""Computes the parity report and lays it out as `parity.json` holds it."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from lightning_opd.analysis.bootstrap import Interval, mean_interval, paired_intervals
from lightning_opd.errors import ConfigError

if TYPE_CHECKING:
    from lightning_opd.analysis.scores import Answer, Cell, ScoredModels, Scores


@dataclass(frozen=True)
class CellReport:
    """One cell of the report.

    Args:
        cell: Domain, split and mode.
        num_prompts: Prompts that student and teacher both answered.
        student: Mean outcome of the student on them.
        teacher: Mean outcome of each prompt's own teacher on them.
        parity: Their ratio.
        baselines: Name → mean outcome and number of prompts.
    """

    cell: Cell
    num_prompts: int
    student: Interval
    teacher: Interval
    parity: Interval
    baselines: dict[str, tuple[Interval, int]]


@dataclass(frozen=True)
class Report:
    """The whole comparison.

    Args:
        cells: In the order of domain, split, mode.
        experts: Teacher name → its mean outcome in every cell, its own domain or another's.
    """

    cells: tuple[CellReport, ...]
    experts: dict[str, dict[Cell, float]]

    def as_dict(self) -> dict[str, object]:
        """Return the layout of `parity.json`."""
        domains: dict[str, dict[str, dict[str, object]]] = {}
        for row in self.cells:
            entry: dict[str, object] = {"student": row.student.as_dict(), "teacher": row.teacher.as_dict()}
            entry |= {name: {**interval.as_dict(), "n": count} for name, (interval, count) in row.baselines.items()}
            entry |= {"parity": row.parity.as_dict(), "n": row.num_prompts}
            domains.setdefault(row.cell.domain, {}).setdefault(row.cell.split, {})[row.cell.mode] = entry
        experts: dict[str, dict[str, dict[str, dict[str, float]]]] = {}
        for name, values in self.experts.items():
            for cell, value in values.items():
                experts.setdefault(name, {}).setdefault(cell.domain, {}).setdefault(cell.split, {})[cell.mode] = value
        return {"domains": domains, "experts": experts}


def compare(models: ScoredModels, num_resamples: int = 2000, seed: int = 0) -> Report:
    """Compare the student with each prompt's own teacher, and the baselines beside them.

    Args:
        models: Scores of all models.
        num_resamples: Bootstrap resamples per interval.
        seed: Seed of the bootstrap.

    Raises:
        ConfigError: If a prompt's teacher was not given, or answered none of the student's prompts.
    """
    cells = [_compare_cell(cell, models, num_resamples, seed) for cell in sorted(models.student)]
    experts = {
        name: {cell: float(_outcomes(answers).mean()) for cell, answers in sorted(scores.items())}
        for name, scores in sorted(models.teachers.items())
    }
    return Report(tuple(cells), experts)


def _compare_cell(cell: Cell, models: ScoredModels, num_resamples: int, seed: int) -> CellReport:
    student, teacher = _paired(cell, models.student[cell], models.teachers)
    seeds = {name: zlib.crc32(f"{seed} {cell} {name}".encode()) for name in ("paired", *models.baselines)}
    of_student, of_teacher, parity = paired_intervals(student, teacher, num_resamples, seeds["paired"])
    baselines = {
        name: (mean_interval(_outcomes(scores[cell]), num_resamples, seeds[name]), len(scores[cell]))
        for name, scores in models.baselines.items()
        if cell in scores
    }
    return CellReport(cell, len(student), of_student, of_teacher, parity, baselines)


def _paired(cell: Cell, answers: dict[str, Answer], teachers: dict[str, Scores]) -> tuple[np.ndarray, np.ndarray]:
    pairs: list[tuple[float, float]] = []
    for key, answer in sorted(answers.items()):
        if answer.teacher not in teachers:
            from lightning_opd.types.mixtures import mixture_weights  # it brings torch, which no report needs

            if len(mixture_weights(answer.teacher)) > 1:
                msg = (
                    f"{cell}: the student's prompts belong to several teachers ({answer.teacher}), so that no one's "
                    "answers are there to compare with. Test rows that name one teacher each."
                )
                raise ConfigError(msg)
            known = ", ".join(f"`teacher.{name}`" for name in sorted(teachers)) or "none"
            msg = (
                f"{cell}: the student's prompts belong to teacher `{answer.teacher}`; "
                f"add `teacher.{answer.teacher}=FILE` (given: {known})."
            )
            raise ConfigError(msg)
        theirs = teachers[answer.teacher].get(cell, {}).get(key)
        if theirs is not None:
            pairs.append((answer.reward, theirs.reward))
    if not pairs:
        names = ", ".join(sorted({answer.teacher for answer in answers.values()}))
        msg = (
            f"{cell}: student and teacher ({names}) have no prompt in common; "
            "run `test` for both with the same task, splits and modes."
        )
        raise ConfigError(msg)
    student, teacher = np.asarray(pairs, dtype=np.float64).T
    return student, teacher


def _outcomes(answers: dict[str, Answer]) -> np.ndarray:
    return np.asarray([answers[key].reward for key in sorted(answers)], dtype=np.float64)
