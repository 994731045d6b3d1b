from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from lightning_opd.models import Lora
from lightning_opd.modules import OPDModule
from lightning_opd.objectives import DistributionMatching
from lightning_opd.types import Sampling
from tests.world import STOPS, Recorder, make_data, make_module, make_trainer


def weights(module: OPDModule) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in module.named_parameters()}


def train(
    world: Path,
    folder: Path,
    max_steps: int,
    accumulate: int = 1,
    updates: int = 1,
    ckpt_path: Path | None = None,
    callbacks: Sequence[Callback] = (),
    **student: Any,
) -> tuple[OPDModule, Recorder]:
    """Train with momentum and a schedule, so that optimiser and schedule state matter too."""
    module, recorder = make_module(world, DistributionMatching(), **student), Recorder()
    module._optimizer = lambda parameters: torch.optim.AdamW(parameters, lr=1e-2)
    module._lr_scheduler = lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 2)
    saver = ModelCheckpoint(folder, "{step}", every_n_train_steps=1, save_top_k=-1)
    trainer = make_trainer(
        folder,
        recorder,
        saver,
        *callbacks,
        max_steps=max_steps,
        accumulate_grad_batches=accumulate,
        enable_checkpointing=True,
        limit_val_batches=1,
        val_check_interval=2 * accumulate * updates,
    )
    sampling = Sampling(max_new_tokens=6, stop_token_ids=STOPS)
    trainer.fit(module, make_data(updates_per_batch=updates, sampling=sampling), ckpt_path=ckpt_path)
    return module, recorder


@pytest.mark.parametrize(
    ("accumulate", "updates", "steps"),
    [
        pytest.param(1, 1, (1, 3), marks=pytest.mark.slow),
        pytest.param(2, 1, (2, 4), marks=pytest.mark.slow),
        pytest.param(1, 2, (1, 2, 6), marks=pytest.mark.slow),
        (2, 2, (3, 4)),
    ],
)
def test_a_run_resumed_after_any_step_equals_the_undisturbed_one_bit_for_bit(
    accumulate: int, updates: int, steps: tuple[int, ...], world: Path, tmp_path: Path
) -> None:
    """Twelve prompts in rollout batches of four: an epoch has three steps, or six of two updates per batch.

    Inside and at the end of an epoch, and inside and at the end of a rollout batch.
    """
    whole, seen = train(world, tmp_path / "whole", 7, accumulate, updates)
    for step in steps:
        torch.manual_seed(1000 + step)  # the resumed process has another random state
        ckpt_path = tmp_path / "whole" / f"step={step}.ckpt"
        resumed, seen_again = train(world, tmp_path / "whole", 7, accumulate, updates, ckpt_path)
        for name, value in weights(whole).items():
            assert torch.equal(value, weights(resumed)[name]), f"{name} differs after resuming at step {step}"
        assert torch.equal(seen.rollout_batches[-1].token_ids, seen_again.rollout_batches[-1].token_ids)


def test_checkpoints_hold_trainable_weights_only(world: Path, tmp_path: Path) -> None:
    train(world, tmp_path / "full", 1)
    train(world, tmp_path / "lora", 1, lora=Lora(rank=2))
    full = torch.load(tmp_path / "full" / "step=1.ckpt", weights_only=True)["state_dict"]
    lora = torch.load(tmp_path / "lora" / "step=1.ckpt", weights_only=True)["state_dict"]
    assert all(name.startswith("student.") for name in full)
    assert lora
    assert all("lora_" in name for name in lora)


def test_a_checkpoint_of_another_student_is_refused(world: Path, tmp_path: Path) -> None:
    train(world, tmp_path / "lora", 1, lora=Lora(rank=2))
    with pytest.raises(ValueError, match="does not fit the student"):
        train(world, tmp_path / "other", 2, ckpt_path=tmp_path / "lora" / "step=1.ckpt")
    with pytest.raises(ValueError, match=r"`model.student.lora.rank` was `2`, is `4`"):
        train(world, tmp_path / "wider", 2, lora=Lora(rank=4), ckpt_path=tmp_path / "lora" / "step=1.ckpt")
    content = torch.load(tmp_path / "lora" / "step=1.ckpt", weights_only=True)
    del content["settings"]  # as one that does not record them
    torch.save(content, tmp_path / "plain.ckpt")
    with pytest.raises(ValueError, match=r"\d+ have another shape \(student.*lora_A.student.weight \[2, \d+\] for \[4"):
        train(world, tmp_path / "wider", 2, lora=Lora(rank=4), ckpt_path=tmp_path / "plain.ckpt")
    with pytest.raises(ValueError, match=r"`model.student.lora.targets` was `all-linear`, is `\['q_proj'\]`"):
        train(
            world, tmp_path / "other", 2, ckpt_path=tmp_path / "lora" / "step=1.ckpt", lora=Lora(2, targets=["q_proj"])
        )


def test_a_lora_run_resumes_and_leaves_the_base_alone(world: Path, tmp_path: Path) -> None:
    whole, _ = train(world, tmp_path / "whole", 4, lora=Lora(rank=2))
    resumed, _ = train(world, tmp_path / "whole", 4, ckpt_path=tmp_path / "whole" / "step=2.ckpt", lora=Lora(rank=2))
    fresh = make_module(world).configure_student().state_dict()
    for name, value in weights(whole).items():
        assert torch.equal(value, weights(resumed)[name])
        if "base_layer" in name:
            original = name.removeprefix("student.base_model.model.").replace(".base_layer", "")
            assert torch.equal(value, fresh[original])


class Saves(Callback):
    """Remembers for each save whether gradients had been accumulated that it does not hold."""

    def __init__(self) -> None:
        self.inside: list[bool] = []

    def on_save_checkpoint(self, trainer: L.Trainer, *_: object) -> None:
        self.inside.append(trainer.fit_loop._should_accumulate())


def test_a_resumed_run_saves_nothing_in_the_middle_of_an_accumulation(world: Path, tmp_path: Path) -> None:
    train(world, tmp_path, 2, accumulate=2)
    saves = Saves()
    train(world, tmp_path, 3, accumulate=2, ckpt_path=tmp_path / "step=2.ckpt", callbacks=(saves,))
    assert saves.inside == [False]
