from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_opd.data import SFTDataModule
from lightning_opd.data.supervised import ExampleBatches
from lightning_opd.functional.logprobs import token_logprobs
from lightning_opd.interfaces import Split
from lightning_opd.models import Lora, StudentConfig, load_causal_lm
from lightning_opd.modules import SFTModule
from lightning_opd.types import Messages
from tests.world import Letters, Recorder, largest_difference, make_trainer


class Alphabet(Letters):
    """Replies of uneven length."""

    def demonstrations(self, split: Split, num_examples: int, seed: int) -> list[Messages]:
        return [
            ({"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": "abcdefgh"[: 1 + i % 8]})
            for i in range(num_examples)
        ]


def make_module(world: Path, **student: Any) -> SFTModule:
    config = StudentConfig(str(world / "student"), **student)
    return SFTModule(config, lambda parameters: torch.optim.AdamW(parameters, lr=3e-3))


def test_the_loss_is_the_mean_over_response_tokens(world: Path, tmp_path: Path) -> None:
    recorder, data = Recorder(), SFTDataModule(Alphabet(), batch_size=8, num_examples=8, seed=0)
    make_trainer(tmp_path, recorder, max_steps=1).fit(make_module(world), data)
    batch = next(iter(data.train_dataloader()))
    labels = torch.where(batch["response_mask"], batch["token_ids"], -100)
    model = load_causal_lm(str(world / "student"))
    expected = model(batch["token_ids"], attention_mask=batch["attention_mask"].long(), labels=labels).loss
    assert recorder.logged[0]["train/loss"] == pytest.approx(float(expected.detach()), rel=1e-4)


class Uneven(Alphabet):
    """The first half of the replies is much shorter than the second: batches differ in their token count."""

    def demonstrations(self, split: Split, num_examples: int, seed: int) -> list[Messages]:
        return [
            ({"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": "z" * (1 + 30 * (i >= 4))})
            for i in range(num_examples)
        ]


def test_the_validation_loss_is_the_mean_over_all_tokens_not_over_batches(world: Path, tmp_path: Path) -> None:
    data = SFTDataModule(Uneven(), batch_size=4, num_examples=8, num_validation_examples=8, seed=0)
    trainer = make_trainer(tmp_path, limit_val_batches=1.0)
    (logged,) = trainer.validate(make_module(world), data, verbose=False)
    model, totals, counts = load_causal_lm(str(world / "student")), [], []
    batches = data.val_dataloader()
    assert isinstance(batches, ExampleBatches)
    for batch in batches:
        with torch.no_grad():
            logits = model(batch["token_ids"], attention_mask=batch["attention_mask"].long()).logits
        logprobs, mask = token_logprobs(logits, batch["token_ids"]), batch["response_mask"]
        totals.append(-float(logprobs[mask].sum()))
        counts.append(int(mask.sum()))
    assert len(counts) == 2
    mean, mean_of_means = sum(totals) / sum(counts), sum(t / n for t, n in zip(totals, counts, strict=True)) / 2
    assert logged["val/loss"] == pytest.approx(mean, rel=1e-4)
    assert abs(mean - mean_of_means) > 1e-2 * mean


@pytest.mark.parametrize("student", [{}, {"lora": Lora(rank=4)}], ids=str)
def test_training_learns_the_responses(student: dict[str, Any], world: Path, tmp_path: Path) -> None:
    recorder = Recorder()
    data = SFTDataModule(Alphabet(), batch_size=8, num_examples=32, num_validation_examples=8, seed=0)
    trainer = make_trainer(tmp_path, recorder, max_steps=40, limit_val_batches=1)
    trainer.fit(make_module(world, **student), data)
    losses = [logged["train/loss"] for logged in recorder.logged]
    assert losses[-1] < 0.5 * losses[0]
    assert "val/loss" in trainer.callback_metrics


class LongLast(Alphabet):
    """Every fourth reply is thirty times as long as the others: micro-batches differ in their token count."""

    def demonstrations(self, split: Split, num_examples: int, seed: int) -> list[Messages]:
        return [
            ({"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": "z" * (1 + 30 * (i % 4 == 3))})
            for i in range(num_examples)
        ]


def gradients(
    world: Path, folder: Path, batch_size: int, accumulate: int, lr: float = 0.01, **settings: Any
) -> Recorder:
    """Return what two optimiser steps of eight examples each saw."""
    recorder, config = Recorder(), StudentConfig(str(world / "student"), dtype="float64")
    module = SFTModule(config, lambda parameters: torch.optim.SGD(parameters, lr=lr))
    data = SFTDataModule(LongLast(), batch_size=batch_size, num_examples=16, seed=0, shuffle=False)
    settings = {"accumulate_grad_batches": accumulate, "max_steps": 2, **settings}
    make_trainer(folder, recorder, **settings).fit(module, data)
    return recorder


@pytest.mark.parametrize("micro_batch", [1, 2, 4])
def test_gradients_do_not_depend_on_the_split_into_micro_batches(
    micro_batch: int, double_world: Path, tmp_path: Path
) -> None:
    whole, split = (
        gradients(double_world, tmp_path, 8, 1),
        gradients(double_world, tmp_path, micro_batch, 8 // micro_batch),
    )
    assert len(whole.gradients) == len(split.gradients) == 2
    for mine, theirs in zip(whole.gradients, split.gradients, strict=True):
        assert largest_difference(mine, theirs) < 1e-6
        assert max(float(g.abs().max()) for g in mine.values()) > 1e-3
    assert whole.logged[-1]["train/loss"] == pytest.approx(split.logged[-1]["train/loss"], rel=1e-6)


def test_a_last_step_of_fewer_micro_batches_has_its_own_denominator(double_world: Path, tmp_path: Path) -> None:
    """An epoch of four batches of four, three of them to a step: the second step has one."""
    short = gradients(double_world, tmp_path, 4, 3, lr=0.0)
    alone = gradients(double_world, tmp_path, 4, 1, lr=0.0, max_steps=4)
    assert largest_difference(short.gradients[-1], alone.gradients[-1]) < 1e-6
    assert short.logged[-1]["train/loss"] == pytest.approx(alone.logged[-1]["train/loss"], rel=1e-6)


def test_clipping_sees_the_gradients_with_their_denominator(double_world: Path, tmp_path: Path) -> None:
    whole = gradients(double_world, tmp_path, 8, 1, gradient_clip_val=0.1)
    split = gradients(double_world, tmp_path, 2, 4, gradient_clip_val=0.1)
    assert largest_difference(whole.gradients[1], split.gradients[1]) < 1e-6
