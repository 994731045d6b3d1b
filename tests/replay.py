"""What plain forwards of Hugging Face models say about a recorded rollout batch, to hold the training step against."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from lightning_opd.functional.logprobs import token_logprobs
from lightning_opd.models import load_causal_lm
from lightning_opd.types import RolloutBatch
from tests.world import Recorder, make_data, make_module, make_trainer


def fit(
    folder: Path,
    module: L.LightningModule,
    *callbacks: Callback,
    data: dict[str, Any] | None = None,
    **trainer: Any,
) -> Recorder:
    """Train one step, unless told otherwise, and return what was seen."""
    recorder = Recorder()
    make_trainer(folder, *callbacks, recorder, **{"max_steps": 1, **trainer}).fit(module, make_data(**(data or {})))
    return recorder


def distributions(folder: Path, batch: RolloutBatch, temperature: float = 1.0) -> Tensor:
    """Return every token's log-prob at every place, on the time axis of `token_ids`; the first place is unknown."""
    model = load_causal_lm(str(folder), dtype="float64")
    with torch.no_grad():
        logits = model(batch.token_ids, attention_mask=batch.attention_mask.long()).logits
    logprobs = torch.log_softmax(logits / temperature, -1)
    return torch.cat([torch.zeros_like(logprobs[:, :1]), logprobs[:, :-1]], 1)


def teachers(world: Path, batch: RolloutBatch) -> Tensor:
    """Return the distributions of each row's own teacher."""
    found = torch.stack([distributions(world / name, batch) for name in batch.teacher_names])
    return found[batch.teacher_ids, torch.arange(len(batch))]


def chosen(logprobs: Tensor, batch: RolloutBatch) -> Tensor:
    """Return the log-probs of the tokens that are there."""
    return logprobs.gather(-1, batch.token_ids[..., None]).squeeze(-1)


def policy_gradient(
    world: Path, batch: RolloutBatch, advantages: Callable[[Tensor], Tensor], num_tokens: float | None = None
) -> dict[str, Tensor]:
    """Return the gradient of −Σ Â log π / tokens at the saved student.

    Args:
        world: Where the student lies.
        batch: The rollouts.
        advantages: From the student's log-probs of the tokens to Â.
        num_tokens: The denominator; by default the response tokens.
    """
    student = make_module(world, dtype="float64").configure_student().eval()
    logits = student(input_ids=batch.token_ids, attention_mask=batch.attention_mask.long()).logits
    logprobs, mask = token_logprobs(logits, batch.token_ids, batch.temperature), batch.response_mask
    loss = -torch.where(mask, advantages(logprobs.detach()) * logprobs, 0.0).sum() / (num_tokens or mask.sum())
    loss.backward()
    return {f"student.{name}": p.grad for name, p in student.named_parameters() if p.grad is not None}
