from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Callback

from lightning_opd.callbacks import FormatErrorMask, OutcomeReward, TeacherBalance
from lightning_opd.callbacks.teacher_balance import absolute_advantages, balance_factors
from lightning_opd.errors import ConfigError
from lightning_opd.functional.advantages import KLToGo, LogRatioToGo
from lightning_opd.functional.baselines import LeaveOneOut
from lightning_opd.interfaces import Environment, FormatRule, Objective, OPDCallback, Split
from lightning_opd.modules import Critic
from lightning_opd.objectives import DistributionMatching, PolicyGradient
from lightning_opd.tasks.format_rules import NamedRule
from lightning_opd.types import Prompt, RolloutBatch, Sampling, Trajectory
from tests.agents import ScriptedChat, Talk
from tests.tiny import save_model
from tests.world import OBJECTIVES, Recorder, largest_difference, make_data, make_module, make_trainer

STOPS = tuple(range(2, 288, 2))
"""Every other token, so that hardly any reply reaches its limit, which would end the episode."""
BY: list[Any] = ["tokens", "advantage"]


class Fifth(NamedRule):
    """Broken by about every fifth episode of one reply."""

    def is_broken(self, trajectory: Trajectory) -> bool:
        return len(trajectory.turns) == 1 and sum(trajectory.reply_ids) % 5 == 1


class Lengths(Talk):
    """Rewards that differ between siblings."""

    def reward(self) -> float:
        return float(sum(map(len, self.replies)) % 3)


class LongAndShort(ScriptedChat):
    """Episodes of `code` have ten replies, those of `math` one."""

    def __init__(self, only: str | None = None, turns: int = 10) -> None:
        super().__init__(turns=turns)
        self.only = only

    def prompts(self, split: Split) -> Sequence[Prompt]:
        return [prompt for prompt in super().prompts(split) if self.only in (None, prompt.teacher)]

    def environment(self, prompt: Prompt) -> Environment:
        return Lengths(prompt, ["ok"] * (self.turns - 1 if prompt.teacher == "code" else 0))

    def format_rules(self) -> list[FormatRule]:
        return [Fifth()]


class Masks(OPDCallback):
    """Clears the signal of all rows of a teacher."""

    def __init__(self, teacher: int) -> None:
        self.teacher = teacher

    def on_rollout_end(self, trainer: object, module: object, rollouts: RolloutBatch) -> None:
        keep = (rollouts.teacher_ids != self.teacher)[:, None]
        rollouts.distill_mask = rollouts.distill_mask & keep


@pytest.fixture(scope="module")
def long_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as `double_world`, with positions for ten replies."""
    folder = tmp_path_factory.mktemp("long_world")
    for seed, name in enumerate(("student", "math", "code")):
        save_model(folder / name, seed, torch.float64, max_position_embeddings=1024)
    return folder


def fit(
    world: Path,
    folder: Path,
    *callbacks: Callback,
    objective: Objective | None = None,
    task: LongAndShort | None = None,
    critic: Critic | None = None,
    **settings: Any,
) -> Recorder:
    """Train one step in float64 and return what was seen."""
    recorder = Recorder()
    module = make_module(world, objective or PolicyGradient(), "float64")
    module.critic = critic
    settings = {"sampling": Sampling(max_new_tokens=16, stop_token_ids=STOPS), **settings}
    make_trainer(folder, *callbacks, recorder, max_steps=1).fit(module, make_data(task or LongAndShort(), **settings))
    return recorder


def own_tokens(rollouts: RolloutBatch) -> list[float]:
    """Return Σ weight × tokens with a signal of each teacher."""
    active = rollouts.response_mask & rollouts.aligned_mask & rollouts.distill_mask
    rows = rollouts.distill_weights * active.sum(dim=1)
    return [float(rows[rollouts.teacher_ids == index].sum()) for index in range(len(rollouts.teacher_names))]


@pytest.mark.parametrize("target", [None, {"code": 0.3, "math": 0.7}])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_ten_times_as_many_tokens_get_the_target_fraction(
    long_world: Path, tmp_path: Path, objective: Objective, target: dict[str, float] | None
) -> None:
    recorder = fit(long_world, tmp_path, TeacherBalance(target), objective=objective)
    rollouts, logged = recorder.rollout_batches[0], recorder.logged[0]
    lengths = rollouts.response_mask.sum(dim=1)
    code, math = (float(lengths[rollouts.teacher_ids == index].sum()) for index in (0, 1))
    assert code > 8 * math, "the test needs one domain to be much longer"
    after = own_tokens(rollouts)
    assert after[0] / sum(after) == pytest.approx((target or {"code": 0.5})["code"], rel=1e-12)
    assert sum(after) == pytest.approx(code + math, rel=1e-12)
    assert rollouts.num_active_tokens == rollouts.response_mask.sum()
    assert logged["train/distill_fraction_before/code"] == pytest.approx(code / (code + math), rel=1e-6)
    assert logged["train/distill_fraction/math"] == pytest.approx((target or {"math": 0.5})["math"], rel=1e-6)
    assert logged["train/balance_factor/math"] == pytest.approx(after[1] / math, rel=1e-6)


@pytest.mark.parametrize(
    ("objective", "critic"),
    [
        (PolicyGradient(), None),
        (PolicyGradient(LogRatioToGo(), LeaveOneOut()), None),
        (PolicyGradient(KLToGo()), None),
        (PolicyGradient(LogRatioToGo()), Critic()),
    ],
    ids=["immediate", "siblings", "kl_to_go", "critic"],
)
def test_the_advantages_that_the_update_uses_get_the_target_fraction(
    long_world: Path, tmp_path: Path, objective: PolicyGradient, critic: Critic | None
) -> None:
    class Sums(Recorder):
        sums = torch.zeros(2, dtype=torch.float64)

        def on_train_batch_start(self, trainer: Any, module: Any, batch: RolloutBatch, batch_idx: int) -> None:
            with torch.no_grad():
                student = module.forward_student(batch)
                batch.kl = module.objective.state_kl(batch, student)
                if module.critic is not None:
                    batch.baselines = module.critic(student.hidden_states) * batch.response_mask
                rows = module.objective.advantages(batch, student).abs().sum(dim=1)
                batch.kl = None
                batch.baselines = None if module.critic is not None else batch.baselines
            self.sums = torch.stack([rows[batch.teacher_ids == index].sum() for index in (0, 1)])

    sums = Sums()
    recorder = fit(long_world, tmp_path, TeacherBalance(by="advantage"), sums, objective=objective, critic=critic)
    rollouts, logged = recorder.rollout_batches[0], recorder.logged[0]
    assert float(sums.sums[0] / sums.sums.sum()) == pytest.approx(0.5, rel=1e-9)
    assert sum(own_tokens(rollouts)) == pytest.approx(float(rollouts.response_mask.sum()), rel=1e-12)
    assert logged["train/distill_fraction_before/code"] > 0.6


@pytest.mark.parametrize("by", BY)
def test_rows_that_a_mask_took_out_do_not_count(long_world: Path, tmp_path: Path, by: Any) -> None:
    rollouts = fit(long_world, tmp_path, FormatErrorMask(1.0), TeacherBalance(by=by)).rollout_batches[0]
    bad = rollouts.has_format_error
    assert 0 < bad.sum() < len(bad)
    assert torch.equal(rollouts.distill_weights == 0, bad)
    code, math = own_tokens(rollouts)
    assert math > 0
    assert (code == pytest.approx(math, rel=1e-12)) == (by == "tokens")


@pytest.mark.parametrize("by", BY)
def test_outcome_rewards_are_not_balanced(long_world: Path, tmp_path: Path, by: Any) -> None:
    alone, both = (
        fit(long_world, tmp_path, *before, TeacherBalance(by=by)).rollout_batches[0]
        for before in ([], [OutcomeReward()])
    )
    torch.testing.assert_close(alone.distill_weights, both.distill_weights, atol=0, rtol=1e-12)
    assert both.outcome_advantages.any()


@pytest.mark.parametrize("by", BY)
@pytest.mark.parametrize("before", [(), (Masks(0),), (Masks(0), Masks(1))], ids=["absent", "masked", "all masked"])
def test_a_teacher_without_signal_changes_nothing(
    long_world: Path, tmp_path: Path, by: Any, before: tuple[Masks, ...]
) -> None:
    task = LongAndShort(only=None if before else "code")
    rollouts = fit(long_world, tmp_path, *before, TeacherBalance(by=by), task=task).rollout_batches[0]
    assert torch.equal(rollouts.distill_weights, torch.ones_like(rollouts.distill_weights))


def test_balance_changes_the_gradient_by_the_factors_alone(long_world: Path, tmp_path: Path) -> None:
    class Factors(OPDCallback):
        def on_rollout_end(self, trainer: object, module: object, rollouts: RolloutBatch) -> None:
            lengths = rollouts.response_mask.sum(dim=1).double()
            sums = torch.stack([lengths[rollouts.teacher_ids == index].sum() for index in (0, 1)])
            rollouts.distill_weights = (sums.sum() / 2 / sums)[rollouts.teacher_ids]

    ours, by_hand, plain = (fit(long_world, tmp_path, *own) for own in ([TeacherBalance()], [Factors()], []))
    assert largest_difference(ours.gradients[0], by_hand.gradients[0]) < 1e-12
    assert largest_difference(ours.gradients[0], plain.gradients[0]) > 1e-6


def test_the_cut_of_a_factor_is_taken_up_by_the_others() -> None:
    tokens = torch.tensor([1000.0, 100.0, 1.0], dtype=torch.float64)
    target = torch.full_like(tokens, 1 / 3)
    factors = balance_factors(target, tokens, tokens, max_factor=6.0)
    assert float(factors[2]) == 6
    assert float(factors @ tokens) == pytest.approx(1101)
    assert float(factors[0] * tokens[0]) == pytest.approx(float(factors[1] * tokens[1]))
    same = balance_factors(target, tokens, tokens, max_factor=1.0)
    torch.testing.assert_close(same, torch.ones_like(tokens))


def test_every_teacher_is_logged_without_the_callback_too(long_world: Path, tmp_path: Path) -> None:
    recorder = fit(long_world, tmp_path)
    rollouts, logged = recorder.rollout_batches[0], recorder.logged[0]
    for index, name in enumerate(("code", "math")):
        own = [t for t, i in zip(rollouts.trajectories, rollouts.teacher_ids.tolist(), strict=True) if i == index]
        tokens = sum(sum(t.response_mask) for t in own)
        assert logged[f"train/reward/{name}"] == pytest.approx(sum(t.reward for t in own) / len(own))
        assert logged[f"train/response_length/{name}"] == pytest.approx(tokens / len(own))
        assert logged[f"train/token_fraction/{name}"] == pytest.approx(tokens / float(rollouts.num_active_tokens))
        assert logged[f"train/tool_calls/{name}"] == (9, 0)[index]
        assert f"train/teacher_kl/{name}" in logged
    assert logged["train/tool_calls"] == pytest.approx(4.5)


def test_reading_the_advantages_leaves_the_rollouts_as_they_are(long_world: Path, tmp_path: Path) -> None:
    class Twice(OPDCallback):
        def on_rollout_end(self, trainer: Any, module: Any, rollouts: RolloutBatch) -> None:
            with torch.no_grad():
                first, second = (absolute_advantages(module.learner(), rollouts) for _ in range(2))
            assert torch.equal(first, second)
            assert first.all()

    objective = PolicyGradient(LogRatioToGo(), LeaveOneOut())
    with_it, without = (fit(long_world, tmp_path, *own, objective=objective) for own in ([Twice()], []))
    assert largest_difference(with_it.gradients[0], without.gradients[0]) == 0


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"target": {"math": 0.5, "code": 0.6}}, "must add up to 1"),
        ({"target": {"math": 0.0, "code": 1.0}}, "`target` of `math` is a fraction above 0"),
        ({"target": {"math": float("nan"), "code": 1.0}}, "`target` of `math` is a fraction above 0"),
        ({"max_factor": 0.5}, "`max_factor` must be a finite number of at least 1, got 0.5"),
        ({"max_factor": float("inf")}, "Leave it out for no limit"),
    ],
)
def test_numbers_without_a_meaning_are_refused(settings: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        TeacherBalance(**settings)


@pytest.mark.parametrize(
    ("callback", "objective", "expected"),
    [
        (
            TeacherBalance({"math": 0.5, "cod": 0.5}),
            None,
            r"names \['cod', 'math'\], the teachers are \['code', 'math'\]",
        ),
        (TeacherBalance({"math": 1.0}), None, "Give each of them a fraction"),
        (TeacherBalance(by="advantage"), DistributionMatching(), "Use `by: tokens`"),
    ],
)
def test_what_does_not_fit_the_run_is_refused_before_a_model_loads(
    world: Path, tmp_path: Path, callback: TeacherBalance, objective: Objective | None, expected: str
) -> None:
    module = make_module(world, objective)
    with pytest.raises(ConfigError, match=expected):
        make_trainer(tmp_path, callback).fit(module, make_data())
    assert module.student is None
