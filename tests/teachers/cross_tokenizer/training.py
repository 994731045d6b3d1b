"""Trains two steps against teachers, some of which have another tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning_opd.interfaces import Objective, Teacher
from lightning_opd.modules import OPDModule
from lightning_opd.objectives import PolicyGradient
from tests.world import Letters, Recorder, make_data, make_module, make_trainer


def train(
    world: Path, folder: Path, teachers: dict[str, Teacher], objective: Objective | None = None, **settings: Any
) -> Recorder:
    """Train two steps against the given teachers and return what was seen."""
    plain, recorder = make_module(world), Recorder()
    module = OPDModule(plain.student_config, dict(teachers), objective or PolicyGradient(), plain._optimizer)
    make_trainer(folder, recorder, **settings).fit(module, make_data(Letters(teachers=sorted(teachers))))
    return recorder
