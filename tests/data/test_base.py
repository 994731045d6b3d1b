"""What both data modules ask their trainer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from lightning_opd.data import SFTDataModule
from lightning_opd.errors import ConfigError
from lightning_opd.models import StudentConfig
from lightning_opd.modules import SFTModule
from lightning_opd.tasks import Arithmetic
from tests.world import make_data, make_module, make_trainer

Make = Callable[[Path, int], tuple[L.LightningModule, L.LightningDataModule]]


def distillation(world: Path, count: int) -> tuple[L.LightningModule, L.LightningDataModule]:
    return make_module(world), make_data(prompts_per_batch=count)


def supervised(world: Path, count: int) -> tuple[L.LightningModule, L.LightningDataModule]:
    return sft(world), SFTDataModule(Arithmetic(), batch_size=count, num_examples=16)


def sft(world: Path) -> SFTModule:
    return SFTModule(StudentConfig(str(world / "student")), lambda parameters: torch.optim.SGD(parameters, lr=0.1))


both = pytest.mark.parametrize(
    ("make", "option"), [(distillation, "prompts_per_batch"), (supervised, "batch_size")], ids=["opd", "sft"]
)


@both
def test_processes_that_cannot_share_a_batch_are_refused_before_a_model_is_loaded(
    make: Make, option: str, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(L.Trainer, "distributed_sampler_kwargs", {"rank": 1, "num_replicas": 2})  # as two processes say
    module, data = make(world, 5)
    with pytest.raises(ConfigError, match=rf"`data\.{option}` is 5, which 2 processes .* Use a multiple of 2\."):
        make_trainer(tmp_path).fit(module, data)
    assert not list(module.parameters())


@both
def test_without_a_trainer_the_data_says_how_to_use_it(make: Make, option: str, world: Path) -> None:
    _, data = make(world, 4)
    with pytest.raises(RuntimeError, match=rf"{type(data).__name__} works inside a Trainer; call `trainer\.fit"):
        data.train_dataloader()


def test_without_a_seed_of_its_own_supervised_data_takes_that_of_seed_everything(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def batches(seed: int | None) -> list[list[Any]]:
        data = SFTDataModule(Arithmetic(), batch_size=4, num_examples=8, seed=seed)
        make_trainer(tmp_path, max_steps=1).fit(sft(world), data)
        return [batch["token_ids"].tolist() for batch in data.train_dataloader()]

    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
    unset = batches(None)
    assert unset == batches(0)
    monkeypatch.setenv("PL_GLOBAL_SEED", "5")
    assert batches(None) == batches(5) != unset
