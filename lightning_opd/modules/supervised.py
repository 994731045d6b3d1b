"""Supervised training: the student learns demonstrated responses."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from typing_extensions import override

from lightning_opd.functional.logprobs import MAX_CHUNK_ELEMENTS, linear_token_statistics
from lightning_opd.models import StudentConfig, sum_over_ranks
from lightning_opd.modules.student import OptimizerFactory, SchedulerFactory, StudentModule


class SFTModule(StudentModule):
    """Maximise the log-prob of demonstrated responses; for bases, experts, warm starts and controls.

    The loss is the mean over the response tokens of a micro-batch, over all ranks.

    Args:
        student: The model to train.
        optimizer: Makes the optimiser from the trainable parameters.
        lr_scheduler: Makes a learning-rate schedule, stepped after every optimiser step.
    """

    def __init__(
        self,
        student: StudentConfig,
        optimizer: OptimizerFactory = lambda parameters: torch.optim.AdamW(parameters, lr=1e-5),
        lr_scheduler: SchedulerFactory | None = None,
    ) -> None:
        """Remember the settings; models load in `configure_model`."""
        super().__init__(student, optimizer, lr_scheduler)

    def compute_loss(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return the summed negative log-prob (nats) of the responses and their token count."""
        model = self.language_model
        states = model.states(batch["token_ids"], batch["attention_mask"].bool())
        mask = batch["response_mask"].bool()
        logprobs, _ = linear_token_statistics(
            states, model.head().logits, batch["token_ids"], mask, chunk_size=MAX_CHUNK_ELEMENTS // model.vocab_size
        )
        return -logprobs.sum(), mask.sum()

    @override
    def training_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> Tensor:
        loss, num_tokens = self.compute_loss(batch)
        mean_tokens = sum_over_ranks(num_tokens.detach().to(loss.dtype)) / self.trainer.world_size
        loss = loss / mean_tokens.clamp(min=1)
        self.non_finite.note(loss, batch)
        self.log("train/loss", loss.detach(), prog_bar=True, batch_size=len(batch["token_ids"]), sync_dist=True)
        return loss

    @override
    def validation_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> None:
        loss, num_tokens = self.compute_loss(batch)
        mean = loss / num_tokens.clamp(min=1)
        self.log("val/loss", mean, prog_bar=True, batch_size=max(1, int(num_tokens)), sync_dist=True)
