from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_opd.callbacks import ExportHuggingFace, FormatErrorMask, OutcomeReward, RolloutTable
from lightning_opd.callbacks.outcome_reward import WeightedReward
from lightning_opd.errors import ConfigError
from lightning_opd.interfaces import Environment, FormatRule, OPDCallback, RewardFunction, SingleTurn
from lightning_opd.models import Lora, load_causal_lm
from lightning_opd.tasks.format_rules import Truncated
from lightning_opd.types import Prompt, RolloutBatch, Trajectory
from tests.world import Letters, Recorder, largest_difference, make_data, make_module, make_trainer


class Even(FormatRule):
    """Broken by responses of even length."""

    def is_broken(self, trajectory: Trajectory) -> bool:
        return sum(trajectory.response_mask) % 2 == 0


class Ruled(Letters):
    def format_rules(self) -> list[FormatRule]:
        return [Even(), Truncated()]


class AllBroken(Letters):
    def format_rules(self) -> list[FormatRule]:
        class Always(FormatRule):
            def is_broken(self, trajectory: Trajectory) -> bool:
                return True

        return [Always()]


def test_format_errors_stop_the_distillation_and_nothing_else(world: Path, tmp_path: Path) -> None:
    recorder = Recorder()
    trainer = make_trainer(tmp_path, FormatErrorMask(warn_above=1.0), OutcomeReward(coef=0.5), recorder, max_steps=1)
    trainer.fit(make_module(world), make_data(Ruled(), samples_per_prompt=4))
    rollouts, logged = recorder.rollout_batches[0], recorder.logged[0]
    bad = torch.tensor([bool(t.format_errors) for t in rollouts.trajectories])
    assert 0 < bad.sum() < len(bad)
    assert torch.equal(rollouts.has_format_error, bad)
    assert torch.equal(rollouts.distill_weights == 0, bad)
    assert rollouts.num_active_tokens == rollouts.response_mask.sum()
    assert rollouts.outcome_advantages[bad].any(), "the outcome gradient stays on broken trajectories"
    assert logged["train/masked"] == pytest.approx(float(bad.double().mean()))
    even = [sum(t.response_mask) % 2 == 0 for t in rollouts.trajectories]
    assert logged["train/format_error/Even"] == pytest.approx(sum(even) / len(even))
    assert {"train/format_error/truncated"} <= logged.keys()


def test_a_rollout_batch_with_too_many_format_errors_warns_once(world: Path, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="100% of a rollout batch's trajectories have format errors") as caught:
        make_trainer(tmp_path, FormatErrorMask(), max_steps=2).fit(make_module(world), make_data(AllBroken()))
    assert sum("have format errors" in str(w.message) for w in caught) == 1


def test_outcome_advantages_are_leave_one_out_times_the_coefficient(world: Path, tmp_path: Path) -> None:
    recorder = Recorder()
    trainer = make_trainer(tmp_path, OutcomeReward(coef=0.5), recorder, max_steps=1)
    trainer.fit(make_module(world), make_data(samples_per_prompt=3))
    rollouts = recorder.rollout_batches[0]
    for row in range(len(rollouts)):
        others = (rollouts.group_ids == rollouts.group_ids[row]).nonzero().squeeze(-1)
        mean = rollouts.rewards[others[others != row]].mean()
        assert float(rollouts.outcome_advantages[row]) == pytest.approx(
            0.5 * float(rollouts.rewards[row] - mean), abs=1e-6
        )
    assert rollouts.outcome_advantages.any()


def test_outcome_rewards_are_added_to_what_is_there(world: Path, tmp_path: Path) -> None:
    class Before(OPDCallback):
        def on_rollout_end(self, trainer: object, module: object, rollouts: RolloutBatch) -> None:
            rollouts.outcome_advantages = torch.arange(len(rollouts)).to(rollouts.outcome_advantages)

    found = []
    for callbacks in ((OutcomeReward(),), (Before(), OutcomeReward(), OutcomeReward(coef=0.5))):
        recorder = Recorder()
        make_trainer(tmp_path, *callbacks, recorder, max_steps=1).fit(make_module(world), make_data())
        found.append(recorder.rollout_batches[0].outcome_advantages)
    assert found[0].any()
    torch.testing.assert_close(found[1], 1.5 * found[0] + torch.arange(len(found[0])))


def test_outcome_reward_needs_siblings(world: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="samples_per_prompt"):
        make_trainer(tmp_path, OutcomeReward()).fit(make_module(world), make_data(samples_per_prompt=1))


def test_the_outcome_gradient_is_the_policy_gradient_of_the_reward(double_world: Path, tmp_path: Path) -> None:
    """Without distillation both objectives leave the same gradient."""
    from lightning_opd.objectives import DistributionMatching, PolicyGradient

    class NoDistillation(OPDCallback):
        def on_rollout_end(self, trainer: object, module: object, rollouts: RolloutBatch) -> None:
            rollouts.distill_weights = torch.zeros_like(rollouts.distill_weights)

    gradients = []
    for objective in (PolicyGradient(), DistributionMatching()):
        recorder = Recorder()
        trainer = make_trainer(tmp_path, NoDistillation(), OutcomeReward(), recorder, max_steps=1)
        trainer.fit(make_module(double_world, objective, "float64"), make_data(samples_per_prompt=4))
        gradients.append(recorder.gradients[0])
    assert largest_difference(*gradients) < 1e-12
    assert max(float(g.abs().max()) for g in gradients[0].values()) > 1e-6


def test_a_callback_that_breaks_a_shape_is_named(world: Path, tmp_path: Path) -> None:
    class Broken(OPDCallback):
        def on_rollout_end(self, trainer: object, module: object, rollouts: RolloutBatch) -> None:
            rollouts.distill_weights = torch.ones(3)

    with pytest.raises(ValueError, match="Broken left `distill_weights` with shape"):
        make_trainer(tmp_path, Broken()).fit(make_module(world), make_data())


def test_callbacks_are_not_called_in_validation(world: Path, tmp_path: Path) -> None:
    recorder = Recorder()
    make_trainer(tmp_path, recorder, limit_val_batches=1).validate(make_module(world), make_data(), verbose=False)
    assert recorder.rollout_batches == []


def test_the_rollout_table_reaches_console_and_tensorboard(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    logger = TensorBoardLogger(tmp_path, "", "logs")
    table = RolloutTable(num_samples=3, every_n_batches=2)
    make_trainer(tmp_path, table, max_steps=3, logger=logger).fit(make_module(world), make_data(Ruled()))
    printed = capsys.readouterr().out
    assert printed.count("rollouts at step") == 2
    assert "KL (nats" in printed
    events = EventAccumulator(str(tmp_path / "logs"))
    events.Reload()
    texts = events.Tensors("rollouts/text_summary")
    assert [text.step for text in texts] == [0, 2]
    assert texts[0].tensor_proto.string_val[0].decode().count("\n") == 4


def test_the_tables_kl_is_the_students_minus_the_teachers_log_prob_per_token(world: Path, tmp_path: Path) -> None:
    logger, recorder = TensorBoardLogger(tmp_path, "", "logs"), Recorder()
    table = RolloutTable(num_samples=8, console=False)
    make_trainer(tmp_path, table, recorder, max_steps=1, logger=logger).fit(make_module(world), make_data(Ruled()))
    rollouts = recorder.rollout_batches[0]
    events = EventAccumulator(str(tmp_path / "logs"))
    events.Reload()
    text = events.Tensors("rollouts/text_summary")[0].tensor_proto.string_val[0].decode()
    lines = text.splitlines()[2:]
    assert len(lines) == len(rollouts) == 8
    for row, line in enumerate(lines):
        *_, reward, form, kl = (cell.strip(" `") for cell in line.strip("|").split(" | "))
        mask = rollouts.response_mask[row]
        expected = (rollouts.rollout_logprobs - rollouts.teacher_logprobs)[row][mask].mean()
        assert kl.rstrip(" |`") == f"{float(expected):.3f}"
        assert float(reward) == float(rollouts.rewards[row])
        assert (form == "ok") == (not rollouts.has_format_error[row])


@pytest.mark.parametrize("student", [{}, {"lora": Lora(rank=2)}], ids=str)
def test_the_trained_student_is_exported(student: dict[str, Any], world: Path, tmp_path: Path) -> None:
    module = make_module(world, **student)
    make_trainer(tmp_path, ExportHuggingFace(), max_steps=2).fit(module, make_data())
    ids = torch.randint(0, 200, (2, 6))
    exported = load_causal_lm(str(tmp_path / "model"))(ids).logits
    assert torch.allclose(exported, module.language_model.model.eval()(ids).logits, atol=1e-3)
    assert not torch.allclose(exported, load_causal_lm(str(world / "student"))(ids).logits, atol=1e-3)


@pytest.mark.parametrize(
    "make",
    [
        lambda: FormatErrorMask(warn_above=2.0),
        lambda: OutcomeReward(coef=-1.0),
        lambda: RolloutTable(num_samples=0),
    ],
)
def test_wrong_settings_are_refused(make: Callable[[], OPDCallback]) -> None:
    with pytest.raises(ValueError, match="got"):
        make()


@dataclass(frozen=True)
class Forgetful(RewardFunction):
    """Returns what it is told to, as a function does that forgets a case."""

    value: object = None

    def __call__(self, trajectory: Trajectory) -> float:
        return self.value  # type: ignore[return-value]  # what users return by mistake


class NoNumber(Letters):
    """An environment of its own, whose reward is NaN."""

    def environment(self, prompt: Prompt) -> Environment:
        class Careless(SingleTurn):
            def reward(self) -> float:
                return float("nan")

        return Careless(self, prompt)


@pytest.mark.parametrize("value", [None, float("nan"), float("inf"), float("-inf")])
def test_a_reward_function_without_a_number_stops_with_its_name_and_the_rows_key(
    value: object, world: Path, tmp_path: Path
) -> None:
    callback = OutcomeReward(rewards=[WeightedReward(Forgetful(value))])
    with pytest.raises(ConfigError, match=rf"`Forgetful` returned the reward {value!r} .* key `train\d+`"):
        make_trainer(tmp_path, callback, max_steps=1).fit(make_module(world), make_data())


@pytest.mark.parametrize("run", ["fit", "validate", "test"])
def test_an_environment_without_a_number_stops_training_and_evaluation(run: str, world: Path, tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, max_steps=1, limit_val_batches=1)
    with pytest.raises(ConfigError, match=r"`Careless\.reward` returned the reward nan .* key `"):
        getattr(trainer, run)(make_module(world), make_data(NoNumber()))


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_weights_of_rewards_are_numbers(wrong: float) -> None:
    with pytest.raises(ConfigError, match="`weight` of Forgetful must be a finite number"):
        WeightedReward(Forgetful(1.0), wrong)
    with pytest.raises(ConfigError, match="`coef` must be a finite number"):
        OutcomeReward(coef=wrong)
