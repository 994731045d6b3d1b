from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.profilers import SimpleProfiler

from lightning_opd.interfaces import StudentForward
from lightning_opd.modules import OPDModule
from lightning_opd.objectives import DistributionMatching, PolicyGradient
from lightning_opd.types import LossTerms, RolloutBatch, Sampling
from tests.world import STOPS, Recorder, make_data, make_module, make_trainer


def test_every_step_learns_from_the_current_student(world: Path, tmp_path: Path) -> None:
    """The log-probs of the sampler equal those of the training forward, at every step, to 1e-4."""
    gaps = []

    class Compare(OPDModule):
        def compute_advantages(self, batch: RolloutBatch, student: StudentForward) -> torch.Tensor:
            gap = torch.where(batch.response_mask, student.logprobs.detach() - batch.rollout_logprobs, 0.0)
            gaps.append(float(gap.abs().max()))
            return super().compute_advantages(batch, student)

    module = make_module(world, kind=Compare)
    make_trainer(tmp_path, max_steps=4, accumulate_grad_batches=2).fit(module, make_data())
    assert len(gaps) == 8
    assert max(gaps) < 1e-4


def test_training_reduces_the_kl_to_the_teachers(world: Path, tmp_path: Path) -> None:
    module, recorder = make_module(world, DistributionMatching()), Recorder()
    module._optimizer = lambda parameters: torch.optim.AdamW(parameters, lr=2e-2)
    make_trainer(tmp_path, recorder, max_steps=14).fit(module, make_data())
    kls = [logged["train/teacher_kl"] for logged in recorder.logged]
    assert sum(kls[-5:]) < 0.65 * sum(kls[:5])


@pytest.mark.parametrize(
    "settings",
    [
        {"max_steps": 3, "accumulate_grad_batches": 2},
        {"max_epochs": 1, "max_steps": -1},
        {"fast_dev_run": 2, "max_steps": -1},
        {"overfit_batches": 2, "max_steps": 4},
        {"limit_train_batches": 2, "max_steps": 4},
        {"max_steps": 2, "num_sanity_val_steps": 2, "limit_val_batches": 1, "val_check_interval": 1},
        {"max_steps": 2, "gradient_clip_val": 0.1},
        {"max_steps": 2, "precision": "bf16-mixed"},
    ],
    ids=str,
)
def test_trainer_settings_mean_what_a_lightning_user_expects(
    settings: dict[str, Any], world: Path, tmp_path: Path
) -> None:
    recorder, module = Recorder(), make_module(world)
    trainer = make_trainer(tmp_path, recorder, **settings)
    trainer.fit(module, make_data())
    steps = {"max_epochs": 3, "fast_dev_run": 2}.get(next(iter(settings)), settings["max_steps"])
    assert trainer.global_step == steps
    assert len(recorder.rollout_batches) == steps
    questions = [[t.prompt.key for t in rollouts.trajectories] for rollouts in recorder.rollout_batches]
    if "overfit_batches" in settings:
        assert questions[:2] == questions[2:]
        assert not torch.equal(
            recorder.rollout_batches[0].rollout_logprobs, recorder.rollout_batches[2].rollout_logprobs
        )
    if "limit_train_batches" in settings:
        assert questions[:2] != questions[2:]
    if "gradient_clip_val" in settings:
        before = make_module(world).configure_student().state_dict()
        after = module.language_model.model.state_dict()
        moved = torch.sqrt(
            sum((after[name] - before[name]).square().sum() for name in before if name != "lm_head.weight")
        )
        assert 0 < float(moved) <= (1 + 1.9) * 0.1 * 0.01 * 1.001  # momentum .9 × clip × learning rate


def test_rollout_score_and_update_are_profiled_and_timed(world: Path, tmp_path: Path) -> None:
    profiler, recorder = SimpleProfiler(), Recorder()
    trainer = make_trainer(tmp_path, recorder, max_steps=2, accumulate_grad_batches=2, profiler=profiler)
    trainer.fit(make_module(world), make_data())
    for action, times in (("rollout", 2), ("score", 2), ("update", 4)):
        assert len(profiler.recorded_durations[action]) == times
        assert recorder.logged[-1][f"time/{action}"] > 0


def test_metrics_are_exact_means_over_the_rollout_batch(world: Path, tmp_path: Path) -> None:
    logs = []
    for accumulate in (1, 4):
        recorder = Recorder()
        make_trainer(tmp_path, recorder, max_steps=1, accumulate_grad_batches=accumulate).fit(
            make_module(world), make_data()
        )
        logs.append(recorder.logged[-1])
        rollouts = recorder.rollout_batches[0]
    assert logs[0].keys() == logs[1].keys()
    for name in logs[0]:
        if not name.startswith(("time/", "train/update_padding")):
            assert logs[0][name] == pytest.approx(logs[1][name], rel=1e-5), name
    assert 1 <= logs[1]["train/update_padding"] <= logs[0]["train/update_padding"] < 2
    assert 1 <= logs[0]["train/score_padding/math"] < 2
    mask = rollouts.response_mask
    kl = (rollouts.rollout_logprobs - rollouts.teacher_logprobs)[mask].mean()
    assert logs[0]["train/teacher_kl"] == pytest.approx(float(kl), rel=1e-4)
    own = mask & (rollouts.teacher_ids == 1)[:, None]
    assert logs[0]["train/teacher_kl/math"] == pytest.approx(
        float((rollouts.rollout_logprobs - rollouts.teacher_logprobs)[own].mean()), rel=1e-4
    )
    assert logs[0]["train/reward"] == pytest.approx(float(rollouts.rewards.mean()))
    clipped = (rollouts.teacher_logprobs - rollouts.rollout_logprobs).abs()[mask] > 5
    assert logs[0]["train/transformed"] == pytest.approx(float(clipped.float().mean()), abs=1e-6)


def test_metrics_reach_the_logger_once_per_step(world: Path, tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path, "", "logs")
    make_trainer(tmp_path, max_steps=3, accumulate_grad_batches=2, logger=logger).fit(make_module(world), make_data())
    lines = (tmp_path / "logs" / "metrics.csv").read_text().splitlines()
    assert len(lines) == 4
    assert "train/teacher_kl/code" in lines[0]


def test_a_subclass_changes_one_hook(world: Path, tmp_path: Path) -> None:
    class Doubled(OPDModule):
        def compute_loss(self, batch: RolloutBatch, student: StudentForward, advantages: torch.Tensor) -> LossTerms:
            terms = super().compute_loss(batch, student, advantages)
            return LossTerms(2 * terms.loss, {**terms.metrics, "twice": (terms.loss * 2, torch.tensor(1.0))})

    recorders = [Recorder(), Recorder()]
    for kind, recorder in zip((OPDModule, Doubled), recorders, strict=True):
        make_trainer(tmp_path, recorder, max_steps=1).fit(make_module(world, kind=kind), make_data())
    for name, gradient in recorders[0].gradients[0].items():
        assert torch.allclose(2 * gradient, recorders[1].gradients[0][name], atol=1e-6)
    assert "train/twice" in recorders[1].logged[0]


def test_validation_noise_is_fixed_per_prompt(world: Path, tmp_path: Path) -> None:
    module, data = make_module(world), make_data()
    trainer = make_trainer(tmp_path, limit_val_batches=1.0)
    first = trainer.validate(module, data, verbose=False)[0]
    again = trainer.validate(module, data, verbose=False)[0]
    assert first == again
    assert {"val/reward", "val/reward/math", "val/format/code", "val/teacher_kl/math"} <= first.keys()


def test_test_writes_scores_and_predict_writes_texts(world: Path, tmp_path: Path) -> None:
    module, trainer = OPDModule(make_module(world).student_config), make_trainer(tmp_path)
    trainer.test(module, make_data(), verbose=False)
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert scores["model"] == str(world / "student")
    assert len(scores["rows"]) == 2 * 2 * 4  # domains × modes × prompts
    assert set(scores["rows"][0]) == {"key", "domain", "teacher", "split", "mode", "reward", "format", "num_tokens"}
    trainer.predict(module, make_data())
    lines = (tmp_path / "predictions.jsonl").read_text().splitlines()
    assert len(lines) == 16
    assert {"prompt", "text", "reward", "format_errors"} <= json.loads(lines[0]).keys()


def test_an_evaluation_with_teachers_refuses_unknown_ones(world: Path, tmp_path: Path) -> None:
    from tests.world import Letters

    data = make_data(Letters(teachers=("math", "law")))
    for evaluate in (make_trainer(tmp_path).validate, make_trainer(tmp_path).test):
        with pytest.raises(ValueError, match="`law`"):
            evaluate(make_module(world), data, verbose=False)
    make_trainer(tmp_path).test(OPDModule(make_module(world).student_config), data, verbose=False)


def test_a_teacher_is_no_part_of_the_module(world: Path, tmp_path: Path) -> None:
    module = make_module(world)
    trainer = make_trainer(tmp_path, max_steps=1)
    trainer.fit(module, make_data())
    assert all(name.startswith("student.") for name in module.state_dict())
    optimised = {id(p) for group in trainer.optimizers[0].param_groups for p in group["params"]}
    assert optimised == {id(p) for p in module.language_model.model.parameters()}
    assert isinstance(module, L.LightningModule)


def test_an_all_masked_rollout_batch_gives_zero_loss_and_no_nan(world: Path, tmp_path: Path) -> None:
    from lightning_opd.interfaces import OPDCallback

    class Nothing(OPDCallback):
        def on_rollout_end(self, trainer: object, module: object, rollouts: RolloutBatch) -> None:
            rollouts.distill_mask = torch.zeros_like(rollouts.distill_mask)

    for objective in (PolicyGradient(), DistributionMatching()):
        recorder = Recorder()
        make_trainer(tmp_path, Nothing(), recorder, max_steps=1).fit(make_module(world, objective), make_data())
        assert recorder.logged[0]["train/loss"] == 0
        assert all(float(g.abs().max()) == 0 for g in recorder.gradients[0].values())


def test_responses_end_at_every_token_that_the_model_declares(world: Path, tmp_path: Path) -> None:
    """As Llama 3 and Qwen 3 do: a list in generation_config.json, of which the tokenizer's eos is one."""
    student = tmp_path / "student"
    shutil.copytree(world / "student", student)
    declared = list(STOPS)
    settings = json.loads((student / "generation_config.json").read_text())
    (student / "generation_config.json").write_text(json.dumps({**settings, "eos_token_id": declared}))
    module = make_module(world)
    module.student_config = dataclasses.replace(module.student_config, path=str(student))
    recorder = Recorder()
    make_trainer(tmp_path, recorder, max_steps=1).fit(module, make_data(sampling=Sampling(max_new_tokens=12)))
    finished = [t for t in recorder.rollout_batches[0].trajectories if not t.is_truncated]
    assert len({t.token_ids[-1] for t in finished}) > 1
    for trajectory in recorder.rollout_batches[0].trajectories:
        assert not set(trajectory.reply_ids[:-1]) & set(declared)
        assert trajectory.is_truncated or trajectory.reply_ids[-1] in declared
