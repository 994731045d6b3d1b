from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lightning.fabric.plugins.environments.lightning import find_free_network_port
from lightning.pytorch.plugins.precision import MixedPrecision
from safetensors.torch import load_file, save_file
from typing_extensions import override

from lightning_opd import OPDModule
from lightning_opd.functional.divergences import ReverseKL
from lightning_opd.functional.top_k import TopK
from lightning_opd.interfaces import Objective, StudentForward
from lightning_opd.modules.non_finite import NonFiniteUpdatesError
from lightning_opd.objectives import DistributionMatching
from lightning_opd.rollouts.drawing import draw
from lightning_opd.teachers import LocalTeacher
from lightning_opd.types import LossTerms, RolloutBatch, Sampling
from tests.replay import fit
from tests.world import OBJECTIVES, largest_difference, make_data, make_module, make_trainer


class Faulty(OPDModule):
    """The loss of one step, or of all from one on, is NaN."""

    steps: frozenset[int] = frozenset()

    @override
    def compute_loss(self, batch: RolloutBatch, student: StudentForward, advantages: torch.Tensor) -> LossTerms:
        terms = super().compute_loss(batch, student, advantages)
        return LossTerms(terms.loss * float("nan") if self.global_step in self.steps else terms.loss, terms.metrics)


OF_TWO = """
import json, sys
from pathlib import Path
from lightning.pytorch.strategies import DDPStrategy
from lightning_opd.modules.non_finite import NonFiniteUpdatesError
from lightning_opd.teachers import LocalTeacher
from tests.world import Recorder, make_data, make_module, make_trainer

rank, world, broken, out = int(sys.argv[1]), *map(Path, sys.argv[2:])
module = make_module(world, teachers={"code": LocalTeacher(str(broken if rank == 1 else world / "code"))})
module.non_finite.max_in_a_row = 1
recorder = Recorder()
trainer = make_trainer(out, recorder, devices=2, strategy=DDPStrategy(process_group_backend="gloo"))
try:
    trainer.fit(module, make_data())
except NonFiniteUpdatesError as error:
    keys = [trajectory.prompt.key for trajectory in recorder.rollout_batches[-1].trajectories]
    print(json.dumps({"error": str(error), "keys": keys}))
"""
"""Two processes, of which the second has a broken teacher."""


def broken_teacher(world: Path, folder: Path) -> Path:
    shutil.copytree(world / "code", folder)
    weights = load_file(folder / "model.safetensors")
    save_file({name: weight * float("nan") for name, weight in weights.items()}, folder / "model.safetensors")
    return folder


def faulty(world: Path, *steps: int) -> Faulty:
    module = make_module(world, kind=Faulty)
    assert isinstance(module, Faulty)
    module.steps = frozenset(steps)
    return module


def test_an_update_that_is_not_finite_changes_nothing(world: Path, tmp_path: Path) -> None:
    module = faulty(world, 1)
    with pytest.warns(UserWarning, match="Update 2 was not finite and was skipped"):
        recorder = fit(tmp_path, module, max_steps=2)
    after_one = make_module(world)
    fit(tmp_path, after_one, max_steps=1)
    assert largest_difference(module.state_dict(), after_one.state_dict()) == 0.0
    assert recorder.logged[-1]["train/skipped_updates"] == 1
    assert module.non_finite.num_skipped == 1


def test_too_many_in_a_row_end_the_run_with_what_was_found(world: Path, tmp_path: Path) -> None:
    module = faulty(world, *range(1, 100))
    module.non_finite.max_in_a_row = 3
    trainer = make_trainer(tmp_path, max_steps=50)
    with (
        pytest.warns(UserWarning, match="was skipped"),
        pytest.raises(NonFiniteUpdatesError, match=r"3 updates in a row.*student's log-probs.*non_finite\.json"),
    ):
        trainer.fit(module, make_data())
    assert all(bool(weight.isfinite().all()) for weight in module.state_dict().values())
    causes = [json.loads(line) for line in (tmp_path / "non_finite.json").read_text().splitlines()]
    assert {cause["skipped"] for cause in causes} == {1, 2, 3}
    assert all(cause["rows"] for cause in causes)


class Remembering(OPDModule):
    """Keeps the weights that it started with."""

    start: dict[str, torch.Tensor]

    @override
    def on_train_start(self) -> None:
        super().on_train_start()
        self.start = {name: weight.clone() for name, weight in self.state_dict().items()}


class Overflowing(OPDModule):
    """The loss is finite, its gradient is not."""

    @override
    def compute_loss(self, batch: RolloutBatch, student: StudentForward, advantages: torch.Tensor) -> LossTerms:
        terms = super().compute_loss(batch, student, advantages)
        loss = terms.loss.clone()
        loss.register_hook(lambda gradient: gradient * float("inf"))
        return LossTerms(loss, terms.metrics)


def half_precision(scale: float) -> MixedPrecision:
    """Return what `precision: 16-mixed` is on a GPU, with another scale to begin with."""
    return MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=scale))


def test_a_loss_scaler_may_look_for_its_scale_for_as_long_as_it_takes(world: Path, tmp_path: Path) -> None:
    module, precision = make_module(world, kind=Remembering), half_precision(2.0**40)
    assert isinstance(module, Remembering)
    module.non_finite.max_in_a_row = 2
    with pytest.warns(UserWarning, match=r"Update \d+ was not finite and was skipped \(loss scale") as told:
        recorder = fit(tmp_path, module, max_steps=40, plugins=[precision])
    assert any("Update 1 was not finite and was skipped (loss scale 1.09951e+12)" in str(w.message) for w in told)
    assert precision.scaler is not None
    num_halved = 40 - round(math.log2(precision.scaler.get_scale()))
    assert 2 < num_halved < 40
    assert module.non_finite.num_skipped == num_halved
    assert recorder.logged[-1]["train/skipped_updates"] == num_halved
    assert all(bool(weight.isfinite().all()) for weight in module.state_dict().values())
    assert largest_difference(module.state_dict(), module.start) > 0.0


def test_gradients_that_overflow_at_every_scale_end_the_run(world: Path, tmp_path: Path) -> None:
    module = make_module(world, kind=Overflowing)
    module.non_finite.max_in_a_row = 3
    trainer = make_trainer(tmp_path, max_steps=50, plugins=[half_precision(4.0)])
    with (
        pytest.warns(UserWarning, match="was skipped"),
        pytest.raises(NonFiniteUpdatesError, match=r"3 updates in a row.*gradients.*bf16-mixed instead of 16-mixed"),
    ):
        trainer.fit(module, make_data())
    assert module.non_finite.num_skipped == 5  # at the scales 4 and 2 it is the scaler's own affair


def test_a_loss_of_nan_is_not_the_scale_s_fault(world: Path, tmp_path: Path) -> None:
    module = faulty(world, *range(100))
    module.non_finite.max_in_a_row = 2
    trainer = make_trainer(tmp_path, max_steps=50, plugins=[half_precision(2.0**16)])
    with (
        pytest.warns(UserWarning, match="was skipped"),
        pytest.raises(NonFiniteUpdatesError, match="student's log-probs"),
    ):
        trainer.fit(module, make_data())
    assert module.non_finite.num_skipped == 2


RENORMALISED = DistributionMatching(TopK(ReverseKL(), 4, correction="renormalise"))


@pytest.mark.parametrize("objective", [*OBJECTIVES, RENORMALISED], ids=lambda o: type(o).__name__)
def test_a_teacher_of_nan_is_named(objective: Objective, world: Path, tmp_path: Path) -> None:
    broken = broken_teacher(world, tmp_path / "broken")
    module = make_module(world, objective, teachers={"code": LocalTeacher(str(broken))})
    module.non_finite.max_in_a_row = 1
    with pytest.raises(NonFiniteUpdatesError, match="Not finite: log-probs of teacher `code`"):
        make_trainer(tmp_path).fit(module, make_data())
    [cause] = [json.loads(line) for line in (tmp_path / "non_finite.json").read_text().splitlines()]
    assert (cause["rank"], cause["teachers"]) == (0, ["code"])


@pytest.mark.slow
def test_what_only_one_of_two_processes_saw_is_written_and_said_by_both(world: Path, tmp_path: Path) -> None:
    broken = broken_teacher(world, tmp_path / "broken")
    port = {"MASTER_PORT": str(find_free_network_port()), "NODE_RANK": "0", "PYTHONPATH": os.pathsep.join(sys.path)}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", OF_TWO, rank, str(world), str(broken), str(tmp_path / "out")],
            env={**os.environ, **port, "LOCAL_RANK": rank},
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in ("0", "1")
    ]
    answers = [json.loads(rank.communicate(timeout=240)[0].splitlines()[-1]) for rank in ranks]
    for answer in answers:
        assert "Not finite: log-probs of teacher `code`" in answer["error"]
    [cause] = [json.loads(line) for line in (tmp_path / "out" / "non_finite.json").read_text().splitlines()]
    assert (cause["rank"], cause["skipped"], cause["teachers"]) == (1, 1, ["code"])
    assert cause["rows"]
    assert set(cause["rows"]) <= set(answers[1]["keys"])
    assert not set(cause["rows"]) & set(answers[0]["keys"])


def test_logits_of_nan_draw_a_token_all_the_same() -> None:
    logits = torch.full((2, 5), float("nan"))
    tokens, logprobs = draw(logits, torch.tensor([1, 2]), 0, Sampling())
    assert bool((tokens < 5).all())
    assert bool(logprobs.isnan().all())
