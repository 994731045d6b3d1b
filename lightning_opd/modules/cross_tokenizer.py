"""Refuses objectives that have no meaning with a teacher of another tokenizer."""

from __future__ import annotations

from collections.abc import Mapping

from lightning_opd.errors import ConfigError
from lightning_opd.functional.credit import ExactMatchCredit, PrefixCredit
from lightning_opd.interfaces import Objective, ReadsOwnTokens, Teacher
from lightning_opd.objectives import PolicyGradient
from lightning_opd.teachers import CrossTokenizerTeacher
from lightning_opd.types import Signal


def check_cross_tokenizer_teachers(objective: Objective, teachers: Mapping[str, Teacher]) -> None:
    """Refuse objectives that have no meaning with cross-tokenizer teachers.

    Args:
        objective: The objective of the run.
        teachers: Name → teacher; all know the student's tokenizer.

    Raises:
        ValueError: The estimator sums other positions' log-ratios, the objective needs the teacher's
            states, or the credit is only a diagnostic.
    """
    names = [
        name for name, teacher in teachers.items() if isinstance(teacher, ReadsOwnTokens) and teacher.is_cross_tokenizer
    ]
    credits = {name: t.credit for name, t in teachers.items() if isinstance(t, CrossTokenizerTeacher)}
    twice = [name for name in names if name not in credits or not credits[name].adds_up]
    if twice and isinstance(objective, PolicyGradient) and objective.estimator.looks_ahead:
        msg = (
            f"`{type(objective.estimator).__name__}` adds up log-ratios of later tokens, which count twice where a "
            f"teacher cuts the text in other places; teacher {_listed(twice)} has another tokenizer than the "
            "student. Use the credit `PrefixCredit`, whose log-ratios add up, or `Immediate`."
        )
        raise ConfigError(msg)
    if names and Signal.HIDDEN_STATES in objective.signals:
        msg = (
            f"`{type(objective).__name__}` compares whole distributions over one vocabulary, but teacher "
            f"{_listed(names)} has another tokenizer than the student. Use `PolicyGradient`, or `DistributionMatching` "
            "with `teacher_signal: top_k`."
        )
        raise ConfigError(msg)
    loose = [name for name in names if not isinstance(credits.get(name), PrefixCredit | ExactMatchCredit)]
    if loose and Signal.TOP_LOGPROBS in objective.signals:
        msg = (
            "Likeliest tokens are compared under the credit `PrefixCredit`, or `ExactMatchCredit` where both sides "
            f"tokenise the text alike, but teacher {_listed(loose)} has another credit. Use `PrefixCredit`, or the "
            "objective `PolicyGradient`."
        )
        raise ConfigError(msg)
    spliced = [name for name, credit in credits.items() if credit.is_spliced]
    if spliced:
        msg = (
            f"Teacher {_listed(spliced)} scores sequences assembled from the student's tokens (`SpliceCredit`), "
            "which no teacher was trained on: a diagnostic, not a training signal. Use the credit `PrefixCredit`, "
            "`ExactMatchCredit`, `SpanCredit` or `SequenceCredit`."
        )
        raise ConfigError(msg)


def _listed(names: list[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)
