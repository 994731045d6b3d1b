"""Rows that name several teachers with weights learn from their mixture, and no model is loaded twice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from typing_extensions import override

from lightning_opd.errors import ConfigError
from lightning_opd.functional.divergences import ReverseKL
from lightning_opd.functional.top_k import TopK
from lightning_opd.interfaces import Split, Teacher
from lightning_opd.modules import OPDModule
from lightning_opd.objectives import DistributionMatching, PolicyGradient
from lightning_opd.tasks import Jsonl
from lightning_opd.teachers import CrossTokenizerTeacher, LocalTeacher, MixtureTeacher, TeacherPool
from lightning_opd.types import Prompt, Sampling, Signal
from lightning_opd.types.mixtures import mixture_name, mixture_weights
from tests.replay import chosen
from tests.teachers.test_mixture_teacher import WEIGHTS, expected, mixture
from tests.world import Letters, Recorder, largest_difference, make_data, make_module, make_trainer

MIXED = "code:0.3+math:0.7"


class Mixed(Letters):
    """Every third prompt names the mixture, the others one of its teachers."""

    def __init__(self, mixed: str = MIXED) -> None:
        super().__init__()
        self.mixed = mixed

    @override
    def prompts(self, split: Split) -> Sequence[Prompt]:
        prompts = super().prompts(split)
        return [replace(prompt, teacher=self.mixed) if i % 3 == 0 else prompt for i, prompt in enumerate(prompts)]


def fit(world: Path, folder: Path, mixed: str = MIXED, *, in_turn: bool = False, **teachers: Teacher) -> Recorder:
    """Train one step in float64."""
    recorder = Recorder()
    own = {name: LocalTeacher(str(world / name), dtype="float64") for name in ("code", "math")}
    plain = make_module(world, DistributionMatching(), "float64")
    module = OPDModule(
        plain.student_config,
        {**own, **teachers},
        DistributionMatching(),
        lambda parameters: torch.optim.SGD(parameters, lr=0.01),
        teachers_in_turn=in_turn,
    )
    make_trainer(folder, recorder, max_steps=1).fit(module, make_data(Mixed(mixed)))
    return recorder


def test_a_row_learns_from_the_mixture_that_it_names(double_world: Path, tmp_path: Path) -> None:
    recorder = fit(double_world, tmp_path)
    batch = recorder.rollout_batches[0]
    assert batch.teacher_names == ("code", MIXED, "math")
    is_mixed = torch.tensor([trajectory.prompt.teacher == MIXED for trajectory in batch.trajectories])
    assert 0 < int(is_mixed.sum()) < len(is_mixed)
    mask = batch.response_mask & is_mixed[:, None]
    right = chosen(expected(double_world, batch), batch)
    torch.testing.assert_close(batch.teacher_logprobs[mask], right[mask], atol=1e-9, rtol=0)


@pytest.mark.parametrize("in_turn", [False, True])
def test_it_is_that_of_a_teacher_of_this_name(double_world: Path, tmp_path: Path, in_turn: bool) -> None:
    ours = fit(double_world, tmp_path, in_turn=in_turn)
    theirs = fit(double_world, tmp_path, "both", both=mixture(double_world))
    assert largest_difference(ours.gradients[0], theirs.gradients[0]) < 1e-12


def test_no_model_is_loaded_for_a_mixture(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[str] = []
    setup = LocalTeacher.setup

    def counting(teacher: LocalTeacher, *args: Any) -> None:
        loaded.append(teacher.path)
        setup(teacher, *args)

    monkeypatch.setattr(LocalTeacher, "setup", counting)
    fit(world, tmp_path)
    assert sorted(loaded) == [str(world / "code"), str(world / "math")]


def test_an_unknown_part_is_named_before_anything_is_loaded(world: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="`mth`") as error:
        fit(world, tmp_path, "code:0.3+mth:0.7")
    assert "`code" not in str(error.value).split("mth")[0]


def test_a_part_with_other_tokens_is_refused(world: Path) -> None:
    path = str(world / "math")
    pool = TeacherPool({"code": LocalTeacher(path), "foreign": CrossTokenizerTeacher(path)})
    with pytest.raises(ConfigError, match="Part `foreign` of a MixtureTeacher is a CrossTokenizerTeacher"):
        pool.mix(["code:0.5+foreign:0.5"])


@pytest.mark.parametrize(
    "weights",
    [{"math": 1}, {"code": 0.3, "math": 0.7}, {"c++": 1 / 3, "a:b": 1 / 3, "x y": 1 / 3}, {"a+b": 0.5, "c": 0.5}],
)
def test_a_name_says_its_weights_exactly(weights: dict[str, float]) -> None:
    assert dict(mixture_weights(mixture_name(weights))) == weights


@pytest.mark.parametrize("name", ["math", "math:0.7", "code:0.3+math", "code:0.9+math:0.7", "a:b+c:d", "+", ""])
def test_other_names_are_teachers(name: str) -> None:
    assert dict(mixture_weights(name)) == {name: 1.0}


def rows_of(teacher: object) -> Sequence[Prompt]:
    return Jsonl([{"prompt": "4 + 3?", "teacher": teacher}]).prompts("train")


@pytest.mark.parametrize("cell", [{"math": 0.7, "code": 0.3}, '{"math": 0.7, "code": 0.3}', {**WEIGHTS, "no": None}])
def test_a_row_names_its_mixture(cell: object) -> None:
    assert [(row.teacher, row.domain) for row in rows_of(cell)] == [(MIXED, MIXED)]


def test_a_mixture_of_one_is_that_teacher() -> None:
    assert rows_of({"math": 1, "code": None})[0].teacher == "math"


@pytest.mark.parametrize(
    ("cell", "text"),
    [
        ({"math": 0.7, "code": 0.7}, r"row 1: in `teacher`, expected weights .* add up to 1, got .*0.7"),
        ({"math": 1.5, "code": -0.5}, "positive"),
        ({"math": "0.7", "code": "0.3"}, "expected weights"),
        ({"math": True}, "expected weights"),
        ({"math": float("nan"), "code": 0.5}, "expected weights"),
        ({}, "expected the teacher's name"),
        ({"": 1.0}, "expected the teacher's name"),
        ('{"math": 0.7,', "JSON"),
        (["math", "code"], "or teachers with their weights"),
    ],
)
def test_a_mixture_that_cannot_be_is_refused_with_its_row(cell: object, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        rows_of(cell)


class OnServer(LocalTeacher):
    """Gives log-probs only, as a server does."""

    @override
    def check_request(self, signals: frozenset[Signal], sampling: Sampling) -> None:
        if Signal.HIDDEN_STATES in signals:
            msg = "no hidden states"
            raise ConfigError(msg)


def test_a_part_that_gives_too_little_is_refused_before_anything_is_loaded(world: Path, tmp_path: Path) -> None:
    own = {name: OnServer(str(world / name)) for name in ("code", "math")}
    objective = DistributionMatching(TopK(ReverseKL(), 8, support="teacher"), teacher_signal="top_k")
    module = make_module(world, objective, teachers=own)
    make_trainer(tmp_path, max_steps=1).fit(make_module(world, objective, teachers=own), make_data())
    with pytest.raises(ConfigError, match=r"Teacher `code:0\.3\+math:0\.7`: part `code`: no hidden states"):
        make_trainer(tmp_path).fit(module, make_data(Mixed()))
    assert module.student is None
    make_trainer(tmp_path, max_steps=1).fit(make_module(world, PolicyGradient(), teachers=own), make_data(Mixed()))


def test_mixtures_of_one_name_are_one_teacher(world: Path) -> None:
    module = make_module(world, PolicyGradient())
    module.teachers.mix([MIXED, MIXED, "math", "unknown"])
    module.teachers.mix([MIXED])
    assert module.teachers.names == ("code", MIXED, "math")
    assert module.teachers.given == ("code", "math")
    assert isinstance(module.teachers[MIXED], MixtureTeacher)
