from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_opd.functional.advantages import Immediate, KLToGo, LogRatioToGo
from lightning_opd.functional.policy_losses import PPOClip
from lightning_opd.interfaces import Objective, StudentForward
from lightning_opd.modules import Critic, OPDModule
from lightning_opd.modules.critic import value_loss
from lightning_opd.objectives import DistributionMatching, PolicyGradient
from lightning_opd.types import RolloutBatch, Sampling
from tests.world import STOPS, Recorder, largest_difference, make_data, make_module, make_trainer


def with_critic(
    world: Path,
    objective: Objective | None = None,
    dtype: str = "float32",
    kind: type[OPDModule] = OPDModule,
    **critic: Any,
) -> OPDModule:
    module = make_module(world, objective or PolicyGradient(KLToGo(), log_ratio_transform=None), dtype, kind=kind)
    module.critic = Critic(**critic)
    return module


def critic_weights(module: OPDModule) -> dict[str, torch.Tensor]:
    assert module.critic is not None
    return {name: p.detach().clone() for name, p in module.critic.named_parameters()}


def test_no_gradient_reaches_the_states() -> None:
    critic = Critic(width=4)
    critic.build(6, torch.float64, torch.device("cpu"))
    states = torch.randn(2, 3, 6, dtype=torch.float64, requires_grad=True)
    values = critic(states)
    assert not values.detach().any()  # V starts at zero
    values.sum().backward()
    assert states.grad is None
    assert all(p.grad is not None for p in critic.parameters())


def test_value_loss_is_half_the_mean_squared_error_over_the_response() -> None:
    values, targets = torch.randn(2, 3, dtype=torch.float64), torch.randn(2, 3, dtype=torch.float64)
    mask = torch.tensor([[False, True, True], [True, False, False]])
    targets[0, 0] = torch.nan
    loss, metrics = value_loss(values, targets, mask, torch.tensor(7.0, dtype=torch.float64))
    error = (values - targets)[mask].square().sum()
    assert float(loss) == pytest.approx(float(0.5 * error / 7))
    explained, total = metrics["explained_variance"]
    assert float(explained / total) == pytest.approx(1 - float(error / targets[mask].var(correction=0) / 3))


def test_untrained_values_leave_the_students_gradient_alone_and_the_loss_is_its_own(
    double_world: Path, tmp_path: Path
) -> None:
    """V starts at zero: the student's gradient is that of a run without a critic, to the last bit."""
    alone, beside = Recorder(), Recorder()
    objective = PolicyGradient(KLToGo(), log_ratio_transform=None)
    make_trainer(tmp_path, alone, max_steps=1).fit(make_module(double_world, objective, "float64"), make_data())
    make_trainer(tmp_path, beside, max_steps=1).fit(with_critic(double_world, dtype="float64"), make_data())
    student = {name: g for name, g in beside.gradients[0].items() if name.startswith("student.")}
    assert largest_difference(student, alone.gradients[0]) == 0.0
    assert any(name.startswith("critic.") and bool(g.any()) for name, g in beside.gradients[0].items())


def test_values_are_subtracted_from_the_returns(double_world: Path, tmp_path: Path) -> None:
    objective = PolicyGradient(LogRatioToGo(), log_ratio_transform=None)
    seen: list[tuple[torch.Tensor, ...]] = []

    class Watched(OPDModule):
        def compute_advantages(self, batch: RolloutBatch, student: StudentForward) -> torch.Tensor:
            advantages = super().compute_advantages(batch, student)
            mask, values = batch.response_mask, batch.baselines
            assert values is not None
            seen.append((objective.returns(batch, student.logprobs)[mask], values[mask], advantages[mask]))
            return advantages

    module = with_critic(double_world, objective, "float64", Watched)
    make_trainer(tmp_path, max_steps=2).fit(module, make_data())
    returns, values, advantages = seen[1]
    assert values.any()  # after one update V is no longer zero
    torch.testing.assert_close(advantages, returns - values)


def test_the_critics_gradient_is_clipped_apart_from_the_students(world: Path, tmp_path: Path) -> None:
    recorder = Recorder()
    module = with_critic(world, max_norm=1e-3)
    make_trainer(tmp_path, recorder, max_steps=1, gradient_clip_val=0.5).fit(module, make_data())
    norms = {"student": 0.0, "critic": 0.0}
    for name, gradient in recorder.gradients[0].items():  # before clipping
        norms[name.split(".")[0]] += float(gradient.square().sum())
    after = {"student": 0.0, "critic": 0.0}
    for name, parameter in module.named_parameters():
        if parameter.grad is not None:
            after[name.split(".")[0]] += float(parameter.grad.square().sum())
    assert norms["critic"] ** 0.5 > 1e-3
    assert after["critic"] ** 0.5 == pytest.approx(1e-3, rel=1e-3)
    assert after["student"] ** 0.5 == pytest.approx(min(0.5, norms["student"] ** 0.5), rel=1e-3)


@pytest.mark.slow
def test_the_critic_learns_and_says_how_much_it_explains(world: Path, tmp_path: Path) -> None:
    """The student is constant and generates up to the limit, so the KL to go shrinks along the response."""
    recorder, module = Recorder(), with_critic(world, lr=2e-2)

    def frozen_student(groups: Any) -> torch.optim.Optimizer:
        return torch.optim.Adam([{**groups[0], "lr": 0.0}, *groups[1:]], lr=0.0)

    module._optimizer = frozen_student
    data = make_data(prompts_per_batch=6, sampling=Sampling(max_new_tokens=12, stop_token_ids=(0,)))
    make_trainer(tmp_path, recorder, max_steps=32, max_epochs=-1).fit(module, data)
    explained = [logged["train/explained_variance"] for logged in recorder.logged]
    assert explained[0] < -1
    assert sum(explained[-5:]) / 5 > 0.1, "a constant explains at most 0"
    assert recorder.logged[-1]["train/value_loss"] < 0.3 * recorder.logged[0]["train/value_loss"]


def test_a_checkpoint_holds_the_critic_and_a_resumed_run_equals_the_undisturbed_one(
    world: Path, tmp_path: Path
) -> None:
    from lightning.pytorch.callbacks import ModelCheckpoint

    def train(max_steps: int, ckpt_path: Path | None = None) -> OPDModule:
        module = with_critic(world, PolicyGradient(KLToGo(), policy_loss=PPOClip()))
        module._optimizer = lambda groups: torch.optim.AdamW(groups, lr=1e-2)
        saver = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1)
        trainer = make_trainer(tmp_path, saver, max_steps=max_steps, enable_checkpointing=True)
        sampling = Sampling(max_new_tokens=6, stop_token_ids=STOPS)
        trainer.fit(module, make_data(updates_per_batch=2, sampling=sampling), ckpt_path=ckpt_path)
        return module

    whole = train(4)
    for step in (1, 2):  # inside a rollout batch and between two
        resumed = train(4, tmp_path / f"step={step}.ckpt")
        for name, value in whole.named_parameters():
            assert torch.equal(value, dict(resumed.named_parameters())[name]), f"{name} differs after step {step}"
    assert critic_weights(whole)


def test_a_critic_without_use_is_refused(world: Path, tmp_path: Path) -> None:
    for objective, said in (
        (DistributionMatching(), "has no use for a critic"),
        (PolicyGradient(Immediate()), "has no use for a critic"),
    ):
        with pytest.raises(ValueError, match=said):
            make_trainer(tmp_path).fit(with_critic(world, objective), make_data())
    with pytest.raises(ValueError, match="`lr` of the critic must be positive"):
        Critic(lr=0.0)
