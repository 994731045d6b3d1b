"""The measures against reward hacking, on episodes of many turns."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback

from lightning_opd.callbacks import FormatErrorMask, OutcomeReward, TaskReward, WeightedReward, WellFormed
from lightning_opd.interfaces import FormatRule, Objective, RewardFunction, StudentForward, Task
from lightning_opd.modules import OPDModule
from lightning_opd.tasks.format_rules import NamedRule
from lightning_opd.types import RolloutBatch, Trajectory
from tests.agents import ScriptedChat
from tests.world import OBJECTIVES, Letters, Recorder, largest_difference, make_data, make_module, make_trainer


class Odd(NamedRule):
    """Broken by replies of odd length, the first excepted."""

    def is_broken(self, trajectory: Trajectory) -> bool:
        return len(trajectory.turns) > 1 and len(trajectory.reply_ids) % 2 == 1


class Ruled(ScriptedChat):
    def format_rules(self) -> list[FormatRule]:
        return [Odd()]


def fit(world: Path, folder: Path, *callbacks: Callback, task: Task | None = None, **settings: Any) -> Recorder:
    recorder = Recorder()
    trainer = make_trainer(folder, *callbacks, recorder, max_steps=int(str(settings.pop("max_steps", 1))))
    trainer.fit(make_module(world), make_data(task or Ruled(), **{"samples_per_prompt": 4, **settings}))
    return recorder


def test_the_mask_may_begin_at_the_erring_turn(world: Path, tmp_path: Path) -> None:
    recorder = fit(world, tmp_path, FormatErrorMask(warn_above=1.0, from_erring_turn=True))
    rollouts = recorder.rollout_batches[0]
    assert torch.equal(rollouts.distill_weights, torch.ones(len(rollouts)))
    assert 0 < rollouts.has_format_error.sum() < len(rollouts)
    has_kept = False
    for row, trajectory in enumerate(rollouts.trajectories):
        expected, has_erred = [False] * rollouts.token_ids.shape[1], False
        for turn in trajectory.turns:
            has_erred |= bool(turn.format_errors)
            has_kept |= bool(trajectory.format_errors) and not has_erred
            expected[turn.start : turn.end] = [not has_erred] * (turn.end - turn.start)
        assert rollouts.distill_mask[row].tolist() == expected
    assert has_kept
    num_turns = sum(len(t.turns) for t in rollouts.trajectories)
    assert recorder.logged[0]["train/turns"] == pytest.approx(num_turns / len(rollouts))
    assert rollouts.num_active_tokens == rollouts.response_mask.sum()
    assert recorder.logged[0]["train/masked"] == pytest.approx(float(rollouts.has_format_error.double().mean()))


def test_the_coefficient_goes_where_it_is_sent(world: Path, tmp_path: Path) -> None:
    reward = OutcomeReward(coef=0.8, final_coef=0.0, final_from=0.5)
    recorder = fit(world, tmp_path, reward, task=Letters(), max_steps=8, prompts_per_batch=2)
    coefs = [logged["train/outcome_coef"] for logged in recorder.logged]
    assert coefs == pytest.approx([0.8, 0.6, 0.4, 0.2, 0, 0, 0, 0])
    assert not any(rollouts.outcome_advantages.any() for rollouts in recorder.rollout_batches[4:])
    plain = fit(world, tmp_path, OutcomeReward(coef=0.8), task=Letters(), max_steps=1, prompts_per_batch=2)
    assert torch.equal(plain.rollout_batches[0].outcome_advantages, recorder.rollout_batches[0].outcome_advantages)


class Brief(RewardFunction):
    def __call__(self, trajectory: Trajectory) -> float:
        return -float(sum(trajectory.response_mask))


def test_several_rewards_are_weighed_and_logged(world: Path, tmp_path: Path) -> None:
    terms = [WeightedReward(TaskReward()), WeightedReward(WellFormed(), 0.5), WeightedReward(Brief(), 0.01)]
    recorder = fit(world, tmp_path, OutcomeReward(rewards=terms))
    rollouts, logged = recorder.rollout_batches[0], recorder.logged[0]
    totals = torch.tensor(
        [t.reward + 0.5 * (not t.format_errors) - 0.01 * sum(t.response_mask) for t in rollouts.trajectories]
    )
    for row in range(len(rollouts)):
        others = (rollouts.group_ids == rollouts.group_ids[row]).nonzero().squeeze(-1)
        expected = totals[row] - totals[others[others != row]].mean()
        assert float(rollouts.outcome_advantages[row]) == pytest.approx(float(expected), abs=1e-5)
    assert logged["train/reward_function/TaskReward"] == pytest.approx(logged["train/reward"])
    lengths = rollouts.response_mask.sum(1).double()
    assert logged["train/reward_function/Brief"] == pytest.approx(-float(lengths.mean()))
    assert 0 < logged["train/reward_function/WellFormed"] < 1


def test_groups_without_spread_are_counted_as_groups(world: Path, tmp_path: Path) -> None:
    recorder = fit(world, tmp_path, OutcomeReward(), task=Letters(), samples_per_prompt=2)
    rollouts = recorder.rollout_batches[0]
    rewards = rollouts.rewards.view(-1, 2)
    expected = (rewards[:, 0] == rewards[:, 1]).double().mean()
    assert 0 < expected < 1
    assert recorder.logged[0]["train/groups_without_spread"] == pytest.approx(float(expected))


def test_the_group_size_is_checked_before_anything_is_generated(world: Path, tmp_path: Path) -> None:
    recorder = Recorder()
    with pytest.raises(ValueError, match=r"`data\.samples_per_prompt` 1"):
        make_trainer(tmp_path, OutcomeReward(), recorder).fit(make_module(world), make_data(samples_per_prompt=1))
    assert recorder.rollout_batches == []


def test_an_endless_training_has_no_end_to_reach(world: Path, tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, OutcomeReward(final_coef=0.0), max_steps=-1, max_epochs=-1)
    with pytest.raises(ValueError, match="length of training"):
        trainer.fit(make_module(world), make_data())


@pytest.mark.parametrize("wrong", [{"coef": -1.0}, {"final_coef": -1.0}, {"final_from": 0.0}])
def test_wrong_weights_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        OutcomeReward(**wrong)


class Sabotage(Recorder):
    """Changes every tensor at tokens that the student did not generate."""

    def on_rollout_end(self, trainer: L.Trainer, module: L.LightningModule, rollouts: RolloutBatch) -> None:
        super().on_rollout_end(trainer, module, rollouts)
        others = rollouts.attention_mask & ~rollouts.response_mask
        for name in ("teacher_logprobs", "rollout_logprobs"):
            setattr(rollouts, name, torch.where(others, 1e6, getattr(rollouts, name)))
        rollouts.distill_mask = rollouts.distill_mask | others
        rollouts.aligned_mask = rollouts.aligned_mask | others


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda objective: type(objective).__name__)
def test_what_is_said_about_tools_tokens_changes_nothing(objective: Objective, world: Path, tmp_path: Path) -> None:
    runs: list[Recorder] = []
    for recorder in (Recorder(), Sabotage()):
        trainer = make_trainer(tmp_path, recorder, OutcomeReward(), max_steps=1, accumulate_grad_batches=2)
        trainer.fit(make_module(world, objective), make_data(ScriptedChat(), prompts_per_batch=12))
        runs.append(recorder)
    assert max(len(t.turns) for t in runs[0].rollout_batches[0].trajectories) > 2
    assert largest_difference(runs[0].gradients[0], runs[1].gradients[0]) == 0
    assert runs[0].logged[-1]["train/loss"] == runs[1].logged[-1]["train/loss"]
    written = sum(turn.end - turn.start for t in runs[0].rollout_batches[0].trajectories for turn in t.turns)
    assert all(run.rollout_batches[0].num_active_tokens == written for run in runs)


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda objective: type(objective).__name__)
def test_the_states_that_predict_tools_tokens_receive_exactly_no_gradient(
    objective: Objective, world: Path, tmp_path: Path
) -> None:
    gradients: list[tuple[torch.Tensor, RolloutBatch]] = []

    class Watched(OPDModule):
        def forward_student(self, batch: RolloutBatch) -> StudentForward:
            student = super().forward_student(batch)
            if student.hidden_states.requires_grad:  # not where the first batch is only proven
                student.hidden_states.register_hook(lambda gradient: gradients.append((gradient, batch)))
            return student

    module = make_module(world, objective, kind=Watched)
    make_trainer(tmp_path, OutcomeReward(), max_steps=1).fit(module, make_data(ScriptedChat(), samples_per_prompt=4))
    (gradient, batch) = gradients[0]
    per_token = gradient.abs().sum(-1)
    assert (per_token[~batch.response_mask] == 0).all()
    assert (per_token[batch.response_mask] > 0).double().mean() > 0.9


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda objective: type(objective).__name__)
def test_a_teacher_equal_to_the_student_teaches_nothing_in_any_turn(
    objective: Objective, double_world: Path, tmp_path: Path
) -> None:
    from lightning_opd.models import StudentConfig
    from lightning_opd.modules import OPDModule
    from lightning_opd.teachers import LocalTeacher

    path = str(double_world / "student")
    teachers: dict[str, Any] = {name: LocalTeacher(path, dtype="float64") for name in ("math", "code")}
    module = OPDModule(StudentConfig(path, dtype="float64"), teachers, objective)
    recorder = Recorder()
    make_trainer(tmp_path, recorder, max_steps=1).fit(module, make_data(ScriptedChat(), prompts_per_batch=12))
    turns: Sequence[int] = [len(t.turns) for t in recorder.rollout_batches[0].trajectories]
    assert max(turns) > 2
    assert max(float(g.abs().max()) for g in recorder.gradients[0].values()) < 1e-12
