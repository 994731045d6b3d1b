"""Reads `scores.json` files and pairs their rows by prompt."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from typing_extensions import override

from lightning_opd.cli.errors import UsageError, did_you_mean

_FIELDS = {"key": str, "domain": str, "teacher": str, "split": str, "mode": str}


@dataclass(frozen=True, order=True)
class Cell:
    """One box of the report.

    Args:
        domain: Name of the task.
        split: Which prompts: `train`, `validation` or `test`.
        mode: How the answers were drawn: `sampled` (temperature 1) or `greedy`.
    """

    domain: str
    split: str
    mode: str

    @override
    def __str__(self) -> str:
        """Return the three names."""
        return f"{self.domain} · {self.split} · {self.mode}"


@dataclass(frozen=True)
class Answer:
    """What one model made of one prompt.

    Args:
        outcome: Mean outcome over the samples of this prompt.
        teacher: Name of the prompt's teacher.
    """

    outcome: float
    teacher: str


Scores: TypeAlias = dict[Cell, dict[str, Answer]]
"""Cell → prompt key → answer."""

ROLES = ("student", "base", "average", "task_arithmetic")
NAMED_ROLES = ("teacher", "other")


@dataclass(frozen=True)
class ScoredModels:
    """The scores of every model in the comparison.

    Args:
        student: The merged model.
        teachers: Teacher name → its scores.
        baselines: `base`, `average`, `task_arithmetic`, where given, and others by their names.
    """

    student: Scores
    teachers: dict[str, Scores]
    baselines: dict[str, Scores]


def read_models(words: list[str]) -> ScoredModels:
    """Read the files named on the command line.

    Args:
        words: `student=FILE`, `teacher.NAME=FILE`, `base=FILE`, `average=FILE`, `task_arithmetic=FILE`,
            `other.NAME=FILE`.

    Raises:
        UsageError: If a word or a file is not what it should be.
    """
    files: dict[str, Path] = {}
    for word in words:
        role, separator, file = word.partition("=")
        if not separator or not file:
            msg = f"expected ROLE=FILE, got `{word}`; for example `student=runs/mine/seed0/test/scores.json`."
            raise UsageError(msg)
        kind, _, name = role.partition(".")
        if role not in ROLES and (kind not in NAMED_ROLES or not name):
            roles = ", ".join([*ROLES, *(f"{named}.NAME" for named in NAMED_ROLES)])
            msg = f"`{role}` is not a role in `{word}`.{did_you_mean(role, ROLES)} Roles: {roles}."
            raise UsageError(msg)
        if role in files:
            msg = f"`{role}` is given twice: `{files[role]}` and `{file}`."
            raise UsageError(msg)
        files[role] = Path(file)
    if "student" not in files:
        msg = f"expected a word `student=FILE` among the scores, got {', '.join(f'`{role}`' for role in files)}."
        raise UsageError(msg)
    scores = {role: read_scores(path) for role, path in files.items()}
    return ScoredModels(
        student=scores["student"],
        teachers={role.removeprefix("teacher."): s for role, s in scores.items() if role.startswith("teacher.")},
        baselines={role: scores[role] for role in ROLES[1:] if role in scores}
        | {role.removeprefix("other."): s for role, s in scores.items() if role.startswith("other.")},
    )


def read_scores(path: Path) -> Scores:
    """Read one `scores.json`; several samples of a prompt in one cell are averaged.

    Args:
        path: File written by the `test` verb.

    Raises:
        UsageError: If the file is missing, is no such file, or has no rows.
    """
    if not path.is_file():
        msg = f"scores file `{path}` does not exist; write it with `python -m lightning_opd test --config ...`."
        raise UsageError(msg)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        msg = f"`{path}` is not JSON: {error}; write it again with the `test` verb."
        raise UsageError(msg) from error
    rows = content.get("rows") if isinstance(content, dict) else None
    if not isinstance(rows, list) or not rows:
        msg = f'`{path}` holds no rows; expected `{{"model": ..., "rows": [...]}}` as the `test` verb writes it.'
        raise UsageError(msg)
    outcomes: dict[tuple[Cell, str], list[float]] = defaultdict(list)
    teachers: dict[tuple[Cell, str], str] = {}
    for index, row in enumerate(rows):
        _check_row(path, index, row)
        cell = Cell(row["domain"], row["split"], row["mode"])
        outcomes[cell, row["key"]].append(float(row["outcome"]))
        teachers[cell, row["key"]] = row["teacher"]
    scores: Scores = defaultdict(dict)
    for (cell, key), values in outcomes.items():
        scores[cell][key] = Answer(sum(values) / len(values), teachers[cell, key])
    return dict(scores)


def _check_row(path: Path, index: int, row: object) -> None:
    if not isinstance(row, dict):
        msg = f"`{path}`, row {index}: expected an object, got {type(row).__name__}."
        raise UsageError(msg)
    for name, kind in _FIELDS.items():
        if not isinstance(row.get(name), kind):
            msg = f"`{path}`, row {index}: expected a string `{name}`, got {row.get(name)!r}."
            raise UsageError(msg)
    if not isinstance(row.get("outcome"), (int, float)):
        msg = f"`{path}`, row {index}: expected a number `outcome`, got {row.get('outcome')!r}."
        raise UsageError(msg)
