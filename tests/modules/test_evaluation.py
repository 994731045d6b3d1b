"""What evaluation draws and what it reports, held against the rows themselves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from lightning_opd.interfaces import FormatRule
from lightning_opd.modules import OPDModule
from lightning_opd.tasks.format_rules import NamedRule
from lightning_opd.types import RolloutBatch, Sampling, Trajectory
from tests.replay import chosen, distributions, teachers
from tests.world import STOPS, Letters, make_data, make_module, make_trainer

SAMPLING = Sampling(temperature=0.7, max_new_tokens=12, stop_token_ids=STOPS)


class Even(NamedRule):
    """Broken by responses of even length."""

    def is_broken(self, trajectory: Trajectory) -> bool:
        return sum(trajectory.response_mask) % 2 == 0


class Ruled(Letters):
    def format_rules(self) -> list[FormatRule]:
        return [Even()]


class Watched(OPDModule):
    """Keeps the batches that evaluation sees."""

    def validation_step(self, batch: RolloutBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.batches = [*getattr(self, "batches", []), batch]
        super().validation_step(batch, batch_idx, dataloader_idx)

    def test_step(self, batch: RolloutBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.batches = [*getattr(self, "batches", []), batch]
        super().test_step(batch, batch_idx, dataloader_idx)


@pytest.fixture
def module(double_world: Path) -> Watched:
    plain = make_module(double_world, dtype="float64")
    return Watched(plain.student_config, dict(plain.teachers.distinct))


def test_greedy_takes_the_likeliest_token_and_sampled_draws_at_its_temperature(
    module: Watched, double_world: Path, tmp_path: Path
) -> None:
    make_trainer(tmp_path).test(module, make_data(sampling=SAMPLING), verbose=False)
    modes = {batch.trajectories[0].mode: batch for batch in module.batches}
    assert set(modes) == {"sampled", "greedy"}
    for mode, batch in modes.items():
        temperature = {"sampled": 0.7, "greedy": 1.0}[mode]
        ours, mask = distributions(double_world / "student", batch, temperature), batch.response_mask
        assert bool((ours.argmax(-1) == batch.token_ids)[mask].all()) == (mode == "greedy")
        torch.testing.assert_close(batch.rollout_logprobs[mask], chosen(ours, batch)[mask], atol=1e-6, rtol=0)
        assert batch.temperature == temperature


def test_scores_say_what_each_response_is(module: Watched, tmp_path: Path) -> None:
    make_trainer(tmp_path).test(module, make_data(Ruled()), verbose=False)
    rows = {(row["key"], row["mode"]): row for row in json.loads((tmp_path / "scores.json").read_text())["rows"]}
    seen = [(batch, i, t) for batch in module.batches for i, t in enumerate(batch.trajectories)]
    assert len(rows) == len(seen)
    assert {row["format"] for row in rows.values()} == {0, 1}
    for batch, i, trajectory in seen:
        row, num_tokens = rows[trajectory.prompt.key, trajectory.mode], int(batch.response_mask[i].sum())
        assert row["num_tokens"] == num_tokens < int(batch.attention_mask[i].sum())
        assert row["format"] == num_tokens % 2
        assert row["reward"] == float("a" in trajectory.text)
        assert (row["domain"], row["teacher"]) == (trajectory.prompt.domain, trajectory.prompt.teacher)
        assert row["split"] == "test"


@pytest.mark.parametrize("stage", ["validate", "test"])
def test_means_are_those_of_the_rows(stage: str, module: Watched, double_world: Path, tmp_path: Path) -> None:
    """The KL is that from student to teacher, in nats per token: its mean over many tokens is positive."""
    trainer = make_trainer(tmp_path, limit_val_batches=1.0)
    (logged,) = getattr(trainer, stage)(module, make_data(Ruled()), verbose=False)
    for batch in module.batches:
        mode = batch.trajectories[0].mode
        mask, lengths = batch.response_mask, batch.response_mask.sum(1).double()
        theirs = chosen(teachers(double_world, batch), batch)
        prefix, place = {"validate": ("val", ""), "test": ("test", f"/test/{mode}")}[stage]
        for name in ("", "code", "math"):
            rows = torch.tensor([name in ("", t.prompt.domain) for t in batch.trajectories])
            group = f"{place}/{name}".rstrip("/")
            kl = (batch.rollout_logprobs - theirs)[rows][mask[rows]].mean()
            expected = {
                "teacher_kl": float(kl),
                "format": float((lengths[rows] % 2).mean()),
                "response_length": float(lengths[rows].mean()),
                "reward": float(batch.rewards[rows].mean()),
            }
            for quantity, value in expected.items():
                assert logged[f"{prefix}/{quantity}{group}"] == pytest.approx(value, abs=1e-5), (quantity, group)
            assert mode == "greedy" or float(kl) > 0
