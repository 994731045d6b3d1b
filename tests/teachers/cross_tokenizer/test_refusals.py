from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_opd.errors import ConfigError
from lightning_opd.functional.advantages import AdvantageEstimator
from lightning_opd.functional.credit import (
    Credit,
    ExactMatchCredit,
    PrefixCredit,
    SpanCredit,
    SpliceCredit,
)
from lightning_opd.functional.divergences import ReverseKL
from lightning_opd.functional.top_k import TopK
from lightning_opd.interfaces import Objective
from lightning_opd.models import load_tokenizer
from lightning_opd.modules import OPDModule
from lightning_opd.objectives import DistributionMatching, PolicyGradient
from lightning_opd.teachers import CrossTokenizerTeacher
from lightning_opd.types import Signal
from tests.teachers.cross_tokenizer.foreign import foreign_teacher, scored_batch
from tests.teachers.cross_tokenizer.training import train
from tests.tiny import save_model
from tests.world import Letters, make_data, make_module, make_trainer


class Ahead(AdvantageEstimator):
    """Gives every token the sum of the whole row."""

    looks_ahead = True

    def __call__(self, log_ratio: torch.Tensor, response_mask: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
        return torch.where(response_mask, log_ratio.sum(dim=1, keepdim=True), 0.0)


@pytest.mark.parametrize(
    ("objective", "credit", "words"),
    [
        (
            PolicyGradient(Ahead()),
            ExactMatchCredit(),
            r"`Ahead` adds up log-ratios.*teacher `math`.*Use the credit `PrefixCredit`",
        ),
        (
            DistributionMatching(),
            ExactMatchCredit(),
            r"`DistributionMatching` compares whole distributions.*`PolicyGradient`",
        ),
        (
            DistributionMatching(TopK(ReverseKL(), 8), teacher_signal="top_k"),
            SpanCredit(),
            r"tokenise the text alike.*Use `PrefixCredit`",
        ),
        (
            PolicyGradient(),
            SpliceCredit(),
            r"`math` scores sequences assembled from the student's tokens.*`ExactMatchCredit`",
        ),
    ],
    ids=["looks ahead", "distributions", "top-k of runs", "splice"],
)
def test_what_has_no_meaning_is_refused_before_training(
    objective: Objective, credit: Credit, words: str, world: Path, foreign: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=words):
        train(world, tmp_path, {"math": CrossTokenizerTeacher(str(foreign), credit)}, objective)


def test_estimators_that_look_ahead_work_with_the_students_own_tokenizer(world: Path, tmp_path: Path) -> None:
    train(world, tmp_path, {"math": CrossTokenizerTeacher(str(world / "math"))}, PolicyGradient(Ahead()))


def test_estimators_that_look_ahead_work_where_log_ratios_add_up(world: Path, foreign: Path, tmp_path: Path) -> None:
    train(world, tmp_path, {"math": CrossTokenizerTeacher(str(foreign), PrefixCredit())}, PolicyGradient(Ahead()))


def test_the_splice_may_be_looked_at(world: Path, foreign: Path, tmp_path: Path) -> None:
    plain = make_module(world)
    module = OPDModule(
        plain.student_config,
        {"math": CrossTokenizerTeacher(str(foreign), SpliceCredit())},
        PolicyGradient(),
        plain._optimizer,
    )
    trainer = make_trainer(tmp_path, limit_val_batches=1.0)
    (metrics,) = trainer.validate(module, make_data(Letters(teachers=["math"])), verbose=False)
    assert metrics["val/teacher_kl/math"] != 0


def test_a_teacher_without_the_students_tokenizer_says_so(foreign: Path) -> None:
    with pytest.raises(RuntimeError, match="set_student_tokenizer"):
        _ = CrossTokenizerTeacher(str(foreign)).is_cross_tokenizer


def test_hidden_states_cannot_be_asked_for(world: Path, foreign: Path) -> None:
    teacher = foreign_teacher(world, foreign)
    batch = scored_batch(world, teacher)
    with pytest.raises(ValueError, match="its hidden states say nothing here"):
        teacher.score(batch, frozenset({Signal.HIDDEN_STATES}))


def test_a_teacher_whose_layers_mix_the_branches_of_a_tree_is_refused_at_setup(world: Path, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"model_type": "lfm2", "layer_types": ["conv", "full_attention"]}
    own = load_tokenizer(str(world / "math"))
    own.add_tokens(["question"])
    folder = save_model(tmp_path, tokenizer=own, **changes)
    with pytest.raises(ConfigError, match=r"several continuations.*`conv`.*Use the credit `SpanCredit`"):
        foreign_teacher(world, folder, PrefixCredit())
