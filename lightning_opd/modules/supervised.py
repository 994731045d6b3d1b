"""Supervised training: the student learns demonstrated responses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from typing_extensions import override

from lightning_opd.functional.fused import token_statistics
from lightning_opd.functional.heads import HeadStates
from lightning_opd.models import StudentConfig, sum_over_ranks
from lightning_opd.modules.optimization import OptimizerFactory, SchedulerFactory
from lightning_opd.modules.student import StudentModule


class SFTModule(StudentModule):
    """Maximise the log-prob of demonstrated responses; for bases, experts, warm starts and controls.

    The loss is the mean over the response tokens of the optimiser step: all its micro-batches on all ranks, so that
    gradients do not depend on `accumulate_grad_batches`, not even where replies differ in length.

    Args:
        student: The model to train.
        optimizer: Makes the optimiser from the trainable parameters.
        lr_scheduler: Makes a learning-rate schedule, stepped after every optimiser step.
        allow_changed: Settings that a run may change where it goes on from a checkpoint; see `OPDModule`.
    """

    def __init__(
        self,
        student: StudentConfig,
        optimizer: OptimizerFactory = lambda parameters: torch.optim.AdamW(parameters, lr=1e-5),
        lr_scheduler: SchedulerFactory | None = None,
        allow_changed: Sequence[str] = (),
    ) -> None:
        """Remember the settings; models load in `configure_model`."""
        super().__init__(student, optimizer, lr_scheduler)
        self.allow_changed = tuple(allow_changed)
        self._first_tokens: Tensor | None = None
        self._step_tokens = self._step_loss = torch.zeros(())

    def compute_loss(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return the summed negative log-prob (nats) of the responses and their token count."""
        model = self.language_model
        states = model.states(batch["token_ids"], batch["attention_mask"].bool())
        mask = batch["response_mask"].bool()
        where = mask.nonzero(as_tuple=True)
        ids = batch["token_ids"][where]
        logprobs, _ = token_statistics(HeadStates(states[where], model.head()), ids, states.new_full(ids.shape, -1.0))
        return -logprobs.sum(), mask.sum()

    @override
    def on_train_start(self) -> None:
        super().on_train_start()
        self._first_tokens = None  # of a run that an exception ended inside a step

    @override
    def training_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> Tensor:
        loss, num_tokens = self.compute_loss(batch)
        self.non_finite.note(loss, batch)
        tokens = sum_over_ranks(num_tokens.detach().to(loss.dtype))
        if self._first_tokens is None:
            self._first_tokens = tokens.clamp(min=1)
            self._step_tokens, self._step_loss = torch.zeros_like(tokens), torch.zeros_like(loss.detach())
        self._step_tokens = self._step_tokens + tokens
        self._step_loss = self._step_loss + loss.detach()
        # later micro-batches are not counted yet: divide by the first one's tokens now, and by all of them at the end
        mean_tokens = self._first_tokens / self.trainer.world_size
        if not self._accumulates():
            mean_loss = self._step_loss / (self._step_tokens.clamp(min=1) / self.trainer.world_size)
            self.log("train/loss", mean_loss, prog_bar=True, batch_size=len(batch["token_ids"]), sync_dist=True)
        return loss / mean_tokens * self.trainer.accumulate_grad_batches

    @override
    def on_after_backward(self) -> None:
        """Give the gradients of the step's micro-batches their common denominator, before anything reads them."""
        if self._first_tokens is None or self._accumulates():
            return
        factor = self._first_tokens / self._step_tokens.clamp(min=1)
        self._first_tokens = None
        if self.trainer.accumulate_grad_batches > 1:
            for parameter in self.parameters():
                if parameter.grad is not None:
                    parameter.grad.mul_(factor.to(parameter.grad.dtype))

    def _accumulates(self) -> bool:
        """Return whether another micro-batch of the optimiser step follows: Lightning's own word on it."""
        return self.trainer.fit_loop._should_accumulate()

    @override
    def validation_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> None:
        loss, num_tokens = self.compute_loss(batch)
        mean = loss / num_tokens.clamp(min=1)
        self.log("val/loss", mean, prog_bar=True, batch_size=max(1, int(num_tokens)), sync_dist=True)
