"""What a run's noise depends on: its seed, the rollout batch, the prompt, and nothing else."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_opd.interfaces import Split
from lightning_opd.modules import OPDModule
from lightning_opd.types import Prompt, RolloutBatch, Sampling
from tests.world import Letters, Recorder, make_data, make_module, make_trainer

Replies = dict[str, tuple[int, ...]]


def still(world: Path) -> OPDModule:
    """Return a module whose student does not move."""
    module = make_module(world)
    module._optimizer = lambda parameters: torch.optim.SGD(parameters, lr=0.0)
    return module


def rolled_out(world: Path, folder: Path, seed: int | None, **trainer: Any) -> tuple[list[list[str]], list[Replies]]:
    """Return the prompts of each rollout batch, and each prompt's first reply."""
    recorder = Recorder()
    data = make_data(Letters(8), prompts_per_batch=4, seed=seed, sampling=Sampling(max_new_tokens=8))
    make_trainer(folder, recorder, **{"max_steps": 2, **trainer}).fit(still(world), data)
    orders = [[t.prompt.key for t in rollouts.trajectories[::2]] for rollouts in recorder.rollout_batches]
    return orders, [replies(rollouts) for rollouts in recorder.rollout_batches]


def replies(rollouts: RolloutBatch) -> Replies:
    return {t.prompt.key: t.reply_ids for t in reversed(rollouts.trajectories)}


def test_the_seed_decides_the_order_of_the_prompts_and_the_noise(world: Path, tmp_path: Path) -> None:
    """A rollout batch of all prompts: in another order, every prompt is answered in another way."""
    runs = [rolled_out(world, tmp_path, seed) for seed in (0, 0, 1)]
    assert runs[0] == runs[1]
    assert runs[0][0] != runs[2][0]
    one, other = ({**run[1][0], **run[1][1]} for run in runs[::2])
    assert one.keys() == other.keys()
    assert all(one[key] != other[key] for key in one)


def test_the_noise_of_a_place_depends_on_the_seed_where_the_order_does_not(world: Path, tmp_path: Path) -> None:
    """One prompt, asked in the same place under two seeds."""
    found = []
    for seed in (0, 1):
        recorder = Recorder()
        data = make_data(Letters(1), prompts_per_batch=1, seed=seed)
        make_trainer(tmp_path, recorder, max_steps=1).fit(still(world), data)
        found.append([t.reply_ids for t in recorder.rollout_batches[0].trajectories])
    assert found[0] != found[1]
    assert found[0][0] != found[0][1], "siblings have noise of their own"


def test_a_question_asked_again_gets_another_answer(world: Path, tmp_path: Path) -> None:
    """The same prompts in the same places to the same student, one rollout batch later."""
    orders, answers = rolled_out(world, tmp_path, 0, overfit_batches=1, max_steps=3)
    assert orders[0] == orders[1] == orders[2]
    for key in answers[0]:
        assert len({batch[key] for batch in answers}) == 3


def test_without_a_seed_of_its_own_the_data_takes_that_of_seed_everything(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
    unset = rolled_out(world, tmp_path, None, max_steps=1)
    assert unset == rolled_out(world, tmp_path, 0, max_steps=1)
    monkeypatch.setenv("PL_GLOBAL_SEED", "5")
    assert rolled_out(world, tmp_path, None, max_steps=1) == rolled_out(world, tmp_path, 5, max_steps=1) != unset


def test_validation_noise_depends_on_seed_and_question(world: Path, tmp_path: Path) -> None:
    seen: list[Replies] = []

    class Watched(OPDModule):
        def validation_step(self, batch: RolloutBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
            seen.append(replies(batch))

        def on_validation_epoch_end(self) -> None:
            """Nothing was recorded."""

    class Twins(Letters):
        """Asks one question under many keys."""

        def prompts(self, split: Split) -> list[Prompt]:
            prompts = super().prompts(split)
            return [dataclasses.replace(prompt, messages=prompts[0].messages) for prompt in prompts]

    for seed in (0, 0, 1):
        trainer = make_trainer(tmp_path, limit_val_batches=1.0)
        trainer.validate(Watched(make_module(world).student_config), make_data(Twins(), seed=seed), verbose=False)
    assert seen[0] == seen[1]
    assert all(seen[0][key] != seen[2][key] for key in seen[0])
    assert len(set(seen[0].values())) == len(seen[0]) == 4, "each question has noise of its own"
