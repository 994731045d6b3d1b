"""Forwards without a graph hold a given number of tokens; only a single longer row goes beyond it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch import nn
from typing_extensions import override

from lightning_opd.collection.prompt_report import Found, PromptReport
from lightning_opd.data.limits import longest_row
from lightning_opd.errors import ConfigError
from lightning_opd.functional.policy_losses import PPOClip
from lightning_opd.interfaces import Objective
from lightning_opd.objectives import PolicyGradient
from lightning_opd.teachers import AdapterTeacher, LocalTeacher, TeacherPool
from lightning_opd.types import RolloutBatch, SampledTokens, Signal
from tests.world import Recorder, largest_difference, make_data, make_module, make_trainer

LENGTHS = (30, 4, 17, 10, 28, 5, 16)


def tokens() -> SampledTokens:
    generator = torch.Generator().manual_seed(0)
    ids = [torch.randint(0, 280, (n,), generator=generator).tolist() for n in LENGTHS]
    masks = [[False, False, *[True] * (len(row) - 2)] for row in ids]
    return SampledTokens.from_sequences(ids, masks, 0, torch.float64, torch.device("cpu"))


def watched(model: nn.Module) -> list[tuple[int, int]]:
    """Return a list to which every forward adds its shape."""
    shapes: list[tuple[int, int]] = []

    def add(module: nn.Module, args: object, kwargs: dict[str, Any]) -> None:
        shapes.append(tuple(kwargs["input_ids"].shape))

    model.register_forward_pre_hook(add, with_kwargs=True)
    return shapes


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [(7, 30)]),
        ({"batch_size": 3}, [(2, 30), (3, 17), (2, 5)]),
        ({"max_tokens_per_forward": 60}, [(2, 30), (3, 17), (2, 5)]),
        ({"max_tokens_per_forward": 20}, [(1, 30), (1, 28), (1, 17), (1, 16), (1, 10), (2, 5)]),
        ({"max_tokens_per_forward": 1}, [(1, n) for n in sorted(LENGTHS, reverse=True)]),
    ],
    ids=str,
)
def test_scores_do_not_depend_on_the_budget_which_only_a_single_row_exceeds(
    settings: dict[str, Any], expected: list[tuple[int, int]], double_world: Path
) -> None:
    plain, teacher = (LocalTeacher(str(double_world / "math"), dtype="float64", top_k=4, **s) for s in ({}, settings))
    batch, scores = tokens(), []
    for own in (plain, teacher):
        own.setup(torch.device("cpu"))
        own.score(batch, frozenset())  # finds out once whether the model needs a mask
        shapes = watched(own.loaded_model)
        scores.append(own.score(batch, frozenset(Signal)))
    assert shapes == expected
    mask = batch.response_mask
    found = [(s.logprobs[mask], s.top_logprobs[mask], s.hidden_states.at(0, *mask.nonzero().T)) for s in scores]  # type: ignore[index, union-attr]
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=1e-9, rtol=1e-9)
    read, real = TeacherPool({"math": teacher}).score(batch, frozenset()).metrics["score_padding/math"]
    assert int(read) == sum(rows * columns for rows, columns in expected)
    assert int(real) == sum(LENGTHS)


def test_log_probs_before_the_first_update_do_not_depend_on_the_budget(double_world: Path, tmp_path: Path) -> None:
    objective: Objective = PolicyGradient(policy_loss=PPOClip())
    found = []
    for budget in (10**6, 40):
        recorder = Recorder()
        module = make_module(double_world, objective, "float64")
        data = make_data(updates_per_batch=2, max_tokens_per_forward=budget)
        make_trainer(tmp_path, recorder, max_steps=2).fit(module, data)
        found.append(recorder)
    assert largest_difference(found[0].gradients[1], found[1].gradients[1]) < 1e-10
    one, other = (recorder.rollout_batches[0].old_logprobs for recorder in found)
    assert one is not None
    assert other is not None
    torch.testing.assert_close(one, other, atol=1e-10, rtol=0)
    assert bool(one.any())


def test_a_budget_of_nothing_is_refused() -> None:
    for make in (LocalTeacher, AdapterTeacher):
        with pytest.raises(ConfigError, match=r"`max_tokens_per_forward` of teacher `x` must be at least 1, got 0"):
            make("x", max_tokens_per_forward=0)
    with pytest.raises(ConfigError, match=r"`data.max_tokens_per_forward` must be at least 1, got -1"):
        make_data(max_tokens_per_forward=-1)


@pytest.mark.parametrize(("budget", "is_said"), [(35, True), (64, False)])
def test_a_row_longer_than_the_budget_is_announced_with_its_length(
    budget: int, is_said: bool, world: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = make_trainer(tmp_path, max_steps=1)
    trainer.fit(make_module(world), make_data(max_tokens_per_forward=budget))
    assert ("The longest prompt with its reply may have 39 tokens" in caplog.text) == is_said


class Shapes(Callback):
    """Records the rows and columns of every micro-batch."""

    def __init__(self) -> None:
        self.found: list[tuple[int, int]] = []

    @override
    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: RolloutBatch, batch_idx: int
    ) -> None:
        rows, columns = batch.token_ids.shape
        self.found.append((rows, columns))


@pytest.mark.parametrize(("budget", "number"), [(39 * 8, 1), (39 * 8 - 1, 2), (117, 3), (80, 4), (5, 8)])
def test_micro_batches_keep_a_budget_and_the_gradient(
    budget: int, number: int, double_world: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    gradients = []
    for own in (None, budget):
        recorder, shapes = Recorder(), Shapes()
        trainer = make_trainer(tmp_path, recorder, shapes, max_steps=2)
        trainer.fit(make_module(double_world, dtype="float64"), make_data(max_tokens_per_micro_batch=own))
        gradients.append(recorder.gradients)
    assert trainer.accumulate_grad_batches == number
    assert len(shapes.found) == 2 * number
    assert all(rows * columns <= budget or rows == 1 for rows, columns in shapes.found)
    assert f"{number} micro-batch" in caplog.text
    assert largest_difference(gradients[0][1], gradients[1][1]) < 1e-10


def test_two_numbers_of_micro_batches_are_refused(world: Path, tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, max_steps=1, accumulate_grad_batches=2)
    with pytest.raises(ConfigError, match=r"asks for 4 micro-batches, got `trainer.accumulate_grad_batches` 2"):
        trainer.fit(make_module(world), make_data(max_tokens_per_micro_batch=80))


def test_episodes_of_several_turns_may_be_as_long_as_the_context() -> None:
    found = Found()
    report = PromptReport(1, 1, (5, 5, 5), {}, {}, found, found, found, found, found, {}, 8, 100, refuses_long=True)
    assert longest_row(report) == 13
    assert longest_row(dataclasses.replace(report, has_episodes=True)) == 100
