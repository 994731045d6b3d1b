from __future__ import annotations

import math
import random
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_opd.callbacks import HackDetector
from lightning_opd.callbacks.hack_curve import UNITS
from lightning_opd.callbacks.hack_detector import _repeated
from lightning_opd.interfaces import OPDCallback
from lightning_opd.types import RolloutBatch, Sampling
from tests.world import Letters, Recorder, make_data, make_module, make_trainer

Point = tuple[float, float]
"""Outcome and KL per sequence of a rollout batch."""


def rollouts(reward: float, teacher_kl: float, num_trajectories: int = 96) -> dict[str, float]:
    return {
        **dict.fromkeys(UNITS, 0.1),
        "reward": reward,
        "teacher_kl": teacher_kl,
        "num_trajectories": num_trajectories,
    }


def first_alarm(curve: Iterator[Point], **settings: Any) -> int | None:
    detector = HackDetector(**settings)
    return next((i for i, (reward, kl) in enumerate(curve) if detector.observe(rollouts(reward, kl))), None)


def noisy(curve: Callable[[int], Point], seed: int = 0, length: int = 100) -> Iterator[Point]:
    """Sample the observation of a curve with a rollout batch of 96 trajectories."""
    noise = random.Random(seed)
    for i in range(length):
        rate, kl = curve(i)
        yield sum(noise.random() < rate for _ in range(96)) / 96, kl * (1 + noise.gauss(0, 0.05))


def collapse(i: int) -> Point:
    """Return the seed's hack: KL 2.75 → 1 and outcome .65 → .05."""
    return 0.05 + 0.6 * math.exp(-i / 8), 0.9 + 1.85 * math.exp(-i / 6)


@pytest.mark.parametrize("seed", range(20))
def test_a_collapse_is_seen_within_ten_rollout_batches_of_the_halving(seed: int) -> None:
    halving = next(i for i in range(100) if collapse(i)[0] < 0.5 * collapse(0)[0])
    alarm = first_alarm(noisy(collapse, seed))
    assert alarm is not None
    assert halving - 5 <= alarm <= halving + 10


CURVES: dict[str, Callable[[int], Point]] = {
    "both improve": lambda i: (1 - 0.55 * math.exp(-i / 30), 0.1 + 3 * math.exp(-i / 30)),
    "nothing changes": lambda i: (0.5, 2.0),
    "almost never right": lambda i: (0.02, 2.0 * math.exp(-i / 30)),
    "both get worse": lambda i: (0.6 * math.exp(-i / 20), 1.0 + i / 20),
    "a little is lost on the way": lambda i: (0.9 - 0.1 * (1 - math.exp(-i / 10)), 2.0 * math.exp(-i / 30)),
}


@pytest.mark.parametrize("name", CURVES)
def test_nothing_else_raises_the_alarm(name: str) -> None:
    for seed in range(20):
        assert first_alarm(noisy(CURVES[name], seed)) is None


SCALES = {
    "negative": lambda reward: reward - 1.0,
    "around zero": lambda reward: 2.0 * reward - 1.0,
    "large": lambda reward: 1e4 * reward,
    "small and far from zero": lambda reward: 0.01 * reward - 7.0,
}


def on_scale(curve: Callable[[int], Point], scale: Callable[[float], float], seed: int) -> Iterator[dict[str, float]]:
    """Sample the observation of a curve whose trajectories have scaled rewards instead of 0 and 1."""
    low, high = scale(0.0), scale(1.0)
    for mean, kl in noisy(curve, seed):
        squared = mean * high**2 + (1 - mean) * low**2
        yield {**rollouts(scale(mean), kl), "reward_squared": squared, "lowest": low, "highest": high}


@pytest.mark.parametrize("scale", SCALES)
def test_the_alarm_is_the_same_on_any_scale_of_the_reward(scale: str) -> None:
    for curve in (collapse, *CURVES.values()):
        for seed in range(5):
            plain, scaled = HackDetector(), HackDetector()
            expected = [plain.observe(rollouts(*values)) for values in noisy(curve, seed)]
            assert [scaled.observe(values) for values in on_scale(curve, SCALES[scale], seed)] == expected
            assert any(expected) == (curve is collapse)


@pytest.mark.parametrize("reward", [-3.0, 0.0, 0.25])
def test_rewards_that_are_all_equal_raise_no_alarm(reward: float) -> None:
    detector = HackDetector(span=2)
    same = {"reward_squared": reward**2, "lowest": reward, "highest": reward}
    assert not any(detector.observe({**rollouts(reward, 3.0 - 0.1 * i), **same}) for i in range(20))


def test_continuous_rewards_are_compared_by_their_own_spread() -> None:
    """The same fall of .3 is an alarm where trajectories differ by .1, and none where they differ by 10."""
    for spread, has_alarm in ((0.1, True), (10.0, False)):
        detector = HackDetector(span=2)
        curve = [(-2.0, 3.0)] * 4 + [(-2.3, 1.0)] * 4
        alarms = [
            detector.observe(
                {
                    **rollouts(mean, kl),
                    "reward_squared": mean**2 + spread**2,
                    "lowest": mean - 2 * spread,
                    "highest": mean + 2 * spread,
                }
            )
            for mean, kl in curve
        ]
        assert any(alarms) == has_alarm


def test_repeated_ngrams_are_a_fraction() -> None:
    assert _repeated(torch.tensor([1, 2, 3])) == 0
    assert _repeated(torch.arange(50)) == 0
    assert _repeated(torch.tensor([5] * 13)) == pytest.approx(0.9)


class Scripted(OPDCallback):
    """Makes the rewards fall and the teacher agree more and more, as a hack does."""

    def on_rollout_end(self, trainer: L.Trainer, module: L.LightningModule, rollouts: RolloutBatch) -> None:
        step = trainer.global_step
        rollouts.rewards = torch.full_like(rollouts.rewards, 1.0 if step < 4 else 0.0)
        heavy = rollouts.token_ids[rollouts.response_mask].mode().values
        gap = torch.where(rollouts.token_ids == heavy, 1.0, 0.001) * (2.0 if step < 4 else 0.5)
        rollouts.teacher_logprobs = torch.where(rollouts.response_mask, rollouts.rollout_logprobs - gap, 0.0)


def run(world: Path, folder: Path, detector: HackDetector, **settings: Any) -> Recorder:
    recorder = Recorder()
    trainer = make_trainer(folder, Scripted(), detector, recorder, max_steps=10, **settings)
    trainer.fit(make_module(world), make_data(Letters(24), prompts_per_batch=12))
    return recorder


def test_the_alarm_is_told_and_logged(world: Path, tmp_path: Path) -> None:
    detector = HackDetector(span=2)
    with pytest.warns(UserWarning, match=r"since rollout batch 2: reward 1 → 0\.5.*OutcomeReward") as caught:
        recorder = run(world, tmp_path, detector)
    assert detector.alarm_batch == 4
    assert len([w for w in caught if "Reward hacking" in str(w.message)]) == 1
    assert any("Most of the signal lies on" in str(w.message) for w in caught)
    assert [logged["train/hack_alarm"] for logged in recorder.logged] == [0.0] * 4 + [1.0] * 6
    assert {"train/repeated_ngrams", "train/top_token_fraction"} <= recorder.logged[0].keys()
    assert not (tmp_path / "checkpoints").exists()


class OneDomain(OPDCallback):
    """Makes the rewards of one domain fall below zero while its teacher agrees more and more; the other one gains."""

    def on_rollout_end(self, trainer: L.Trainer, module: L.LightningModule, rollouts: RolloutBatch) -> None:
        step = trainer.global_step
        is_math = torch.tensor([t.prompt.domain == "math" for t in rollouts.trajectories])
        rollouts.rewards = torch.where(is_math, -1.0 if step < 4 else -9.0, 0.0 if step < 4 else 8.0)
        gap = torch.where(is_math, 2.0 if step < 4 else 0.5, 1.0)[:, None]
        rollouts.teacher_logprobs = torch.where(rollouts.response_mask, rollouts.rollout_logprobs - gap, 0.0)


def test_a_hack_in_one_domain_is_seen_and_named(world: Path, tmp_path: Path) -> None:
    """Over all prompts the reward stays the same."""
    detector, recorder = HackDetector(span=2), Recorder()
    trainer = make_trainer(tmp_path, OneDomain(), detector, recorder, max_steps=8)
    with pytest.warns(UserWarning, match=r"in the domain `math`\?.* since rollout batch 2: reward -1 → -9,") as caught:
        trainer.fit(make_module(world), make_data(Letters(24), prompts_per_batch=12))
    assert len([w for w in caught if "Reward hacking" in str(w.message)]) == 1
    alarms = [1.0 * (i >= 5) for i in range(8)]
    assert [logged["train/hack_alarm/math"] for logged in recorder.logged] == alarms
    assert [logged["train/hack_alarm"] for logged in recorder.logged] == alarms
    assert [logged["train/hack_alarm/code"] for logged in recorder.logged] == [0.0] * 8
    assert detector.alarm_batch == 5


@pytest.mark.filterwarnings("ignore:Reward hacking")
def test_stopping_keeps_the_best_student(world: Path, tmp_path: Path) -> None:
    class Weights(Recorder):
        def on_train_batch_start(self, trainer: object, pl_module: torch.nn.Module, *_: object) -> None:
            self.before = [*getattr(self, "before", []), {k: v.clone() for k, v in pl_module.state_dict().items()}]

    weights = Weights()
    detector = HackDetector(span=2, stop=True)
    trainer = make_trainer(tmp_path, Scripted(), detector, weights, max_steps=10)
    trainer.fit(make_module(world), make_data(Letters(24), prompts_per_batch=12))
    assert trainer.global_step == 5
    kept = torch.load(tmp_path / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(kept[name], value) for name, value in weights.before[1].items())


def test_what_is_watched_has_the_units_it_says(world: Path, tmp_path: Path) -> None:
    """KL and length per trajectory, entropy per token."""

    class Watched(HackDetector):
        def observe(self, values: Mapping[str, float]) -> bool:
            seen.append(dict(values))
            return super().observe(values)

    seen: list[dict[str, float]] = []
    recorder = Recorder()
    make_trainer(tmp_path, recorder, Watched(), max_steps=1).fit(make_module(world), make_data())
    batch, values = recorder.rollout_batches[0], seen[0]
    mask = batch.response_mask
    assert values["entropy"] == pytest.approx(-float(batch.rollout_logprobs[mask].mean()), rel=1e-5)
    kl = (batch.rollout_logprobs - batch.teacher_logprobs)[mask].sum() / len(batch)
    assert values["teacher_kl"] == pytest.approx(float(kl), rel=1e-5)
    assert values["length"] == float(mask.sum()) / len(batch)
    assert values["truncated"] == pytest.approx(float(batch.is_truncated.double().mean()))
    assert values["reward"] == pytest.approx(float(batch.rewards.mean()))
    assert values["num_trajectories"] == len(batch)


def test_the_drop_is_measured_from_the_best_block_not_from_the_last_or_the_first() -> None:
    """Blocks of two: 0.2, 0.8, 0.65, and then 0.5, which has lost a quarter of 0.8 only."""
    detector = HackDetector(span=2, reward_drop=0.25, kl_drop=0.1)
    curve = [(0.2, 3.0)] * 2 + [(0.8, 2.0)] * 2 + [(0.65, 1.7)] * 2 + [(0.5, 1.5)] * 2
    alarms = [detector.observe(rollouts(*values, num_trajectories=10_000)) for values in curve]
    assert alarms == [False] * 6 + [True] * 2  # (0.65 + 0.5) / 2 is less than 0.75 · 0.8, too
    better = HackDetector(span=2, reward_drop=0.25, kl_drop=0.1)
    curve[4:] = [(0.9, 1.9)] * 2 + [(0.66, 1.5)] * 2
    alarms = [better.observe(rollouts(*values, num_trajectories=10_000)) for values in curve]
    assert alarms == [False] * 7 + [True]  # 0.66 is above 0.75 · 0.8, and below 0.75 · 0.9
    steady = HackDetector(span=2, reward_drop=0.25, kl_drop=0.1)
    curve = [(0.8, 2.0)] * 2 + [(0.5, 1.85)] * 2
    assert not any(steady.observe(rollouts(*values, num_trajectories=10_000)) for values in curve)


def test_a_resumed_run_does_not_tell_its_alarm_again(world: Path, tmp_path: Path) -> None:
    def train(max_steps: int, ckpt_path: Path | None = None) -> tuple[HackDetector, list[str]]:
        detector, saver = (
            HackDetector(span=2),
            ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1),
        )
        trainer = make_trainer(tmp_path, Scripted(), detector, saver, max_steps=max_steps, enable_checkpointing=True)
        data = make_data(Letters(24), prompts_per_batch=12, sampling=Sampling(max_new_tokens=4))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            trainer.fit(make_module(world), data, ckpt_path=ckpt_path)
        return detector, [str(w.message) for w in caught if "Reward hacking" in str(w.message)]

    first, told = train(6)
    assert first.alarm_batch == 4
    assert len(told) == 1
    resumed, told_again = train(7, tmp_path / "step=6.ckpt")
    assert resumed.alarm_batch == 4
    assert told_again == []
    late, told_late = train(6, tmp_path / "step=3.ckpt")
    assert late.alarm_batch == 4, "rollout batches are counted on from where the run stopped"
    assert told_late == told, "the best block is the one that was seen before"


@pytest.mark.filterwarnings("ignore:Reward hacking")
def test_a_restored_detector_goes_on_where_it_was() -> None:
    whole, first = HackDetector(), HackDetector()
    curve = list(noisy(collapse))
    expected = [whole.observe(rollouts(*values)) for values in curve]
    got = [first.observe(rollouts(*values)) for values in curve[:7]]
    second = HackDetector()
    second.load_state_dict(first.state_dict())
    assert got + [second.observe(rollouts(*values)) for values in curve[7:]] == expected


@pytest.mark.parametrize("wrong", [{"span": 0}, {"reward_drop": 1.0}, {"kl_drop": 0.0}, {"token_fraction": 2.0}])
def test_wrong_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        HackDetector(**wrong)
