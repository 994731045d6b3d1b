"""The loaders: prompts only, sized and stateful, without a model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from lightning_opd.errors import ConfigError
from lightning_opd.types import Prompt, PromptBatch, Split


class PromptLoader:
    """Rollout batches of training prompts in an order shuffled anew each epoch.

    A rollout batch is delivered as `micro_batches` items. It has a length, so Lightning prefetches
    nothing and training stays on-policy; and a state, so that a run resumes where it stopped.

    Args:
        prompts: The training prompts.
        prompts_per_batch: Over all ranks; a last incomplete rollout batch is dropped.
        micro_batches: Items per rollout batch.
        seed: Of the order.
        rank: This process among those that share the data.
        num_ranks: How many there are.
        batches_per_epoch: Fewer rollout batches than there are, if the trainer is limited.
        is_repeating: Whether every epoch brings the same rollout batches (overfitting on purpose).
    """

    def __init__(
        self,
        prompts: Sequence[Prompt],
        prompts_per_batch: int,
        micro_batches: int = 1,
        seed: int = 0,
        rank: int = 0,
        num_ranks: int = 1,
        batches_per_epoch: int | None = None,
        *,
        is_repeating: bool = False,
    ) -> None:
        """Check that there is at least one rollout batch."""
        self._num_batches = len(prompts) // prompts_per_batch
        check_enough(len(prompts), prompts_per_batch)
        self._prompts, self._size, self._micro_batches = prompts, prompts_per_batch, micro_batches
        self._seed, self._rank, self._num_ranks = seed, rank, num_ranks
        self._last = min(self._num_batches, batches_per_epoch or self._num_batches)
        self._is_repeating = is_repeating
        self._epoch = self._position = self._micro = self._delivered = 0
        self._before: dict[str, Any] | None = None
        self._known_order: tuple[int, list[int]] = -1, []

    def __len__(self) -> int:
        """Return the number of micro-batches per epoch."""
        return self._num_batches * self._micro_batches

    def __iter__(self) -> Iterator[PromptBatch]:
        """Go on where the state says; a finished or limited epoch starts the next one."""
        order = self._order(self._epoch)
        for position in range(self._position, self._num_batches):
            rows, prompts = self._batch(order, position)
            index = self._delivered
            for micro in range(self._micro, self._micro_batches):
                self._advance(position, micro)  # before the yield: code after the last one never runs
                yield PromptBatch(prompts, rows, index, micro)

    def upcoming(self) -> PromptBatch:
        """Return the rollout batch after the one whose micro-batch was delivered last; nothing is delivered."""
        epoch, position, index = self._epoch, self._position, self._delivered
        if self._micro:  # some of this one are still to come
            position, index = position + 1, index + 1
            if position >= self._last:
                position, epoch = 0, epoch + (not self._is_repeating)
        rows, prompts = self._batch(self._order(epoch), position)
        return PromptBatch(prompts, rows, index, 0)

    def _order(self, epoch: int) -> list[int]:
        """Return the order of an epoch; that of the last one asked for is kept, since `upcoming` asks at each batch."""
        if self._known_order[0] != epoch:
            generator = torch.Generator().manual_seed(self._seed * 1_000_003 + epoch)
            self._known_order = epoch, torch.randperm(len(self._prompts), generator=generator).tolist()
        return self._known_order[1]

    def _batch(self, order: Sequence[int], position: int) -> tuple[range, list[Prompt]]:
        """Return this rank's rows of a rollout batch, and their prompts."""
        rows = range(self._rank, self._size, self._num_ranks)
        return rows, [self._prompts[order[position * self._size + row]] for row in rows]

    def _advance(self, position: int, micro: int) -> None:
        self._before = self.state_dict()
        is_last_micro = micro + 1 == self._micro_batches
        self._micro = 0 if is_last_micro else micro + 1
        self._position = position + is_last_micro
        self._delivered += is_last_micro
        if self._position >= self._last:
            self._position = 0
            self._epoch += not self._is_repeating

    def put_back(self) -> None:
        """Forget the last micro-batch that was delivered: nothing came of it."""
        if self._before is not None:
            self.load_state_dict(self._before)

    def state_dict(self) -> dict[str, Any]:
        """Return the place of the next micro-batch."""
        return {
            "epoch": self._epoch,
            "position": self._position,
            "micro_batch": self._micro,
            "delivered": self._delivered,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved place."""
        self._epoch, self._position = state["epoch"], state["position"]
        self._micro, self._delivered = state["micro_batch"], state["delivered"]
        if self._position >= self._last:  # of a run that had more of them
            self._position, self._epoch = 0, self._epoch + (not self._is_repeating)


class PromptBatches:
    """Evaluation prompts in a fixed order, one split and mode after the other.

    Every rank gets the same number of batches; a rank that runs out repeats a prompt that then
    counts nowhere.

    Args:
        parts: (split, mode, prompts) to go through.
        batch_size: Prompts per batch and rank.
        rank: This process among those that share the data.
        num_ranks: How many there are.
    """

    def __init__(
        self, parts: Sequence[tuple[Split, str, Sequence[Prompt]]], batch_size: int, rank: int = 0, num_ranks: int = 1
    ) -> None:
        """Cut the parts into batches."""
        self._batches: list[PromptBatch] = []
        for split, mode, prompts in parts:
            step = batch_size * num_ranks
            for start in range(0, len(prompts), step):
                rows = list(range(start + rank, min(start + step, len(prompts)), num_ranks))
                num_real = len(rows)
                num_rows = -(-min(step, len(prompts) - start) // num_ranks)
                rows += [start] * (num_rows - num_real)
                batch = PromptBatch([prompts[row] for row in rows], rows, split=split, mode=mode, num_real=num_real)
                self._batches.append(batch)

    def __len__(self) -> int:
        """Return the number of batches."""
        return len(self._batches)

    def __iter__(self) -> Iterator[PromptBatch]:
        """Yield every batch once."""
        return iter(self._batches)


def check_enough(num_prompts: int, prompts_per_batch: int) -> None:
    """Raise unless there are prompts for one rollout batch."""
    if num_prompts < prompts_per_batch:
        msg = (
            f"`prompts_per_batch` is {prompts_per_batch}, but there are only {num_prompts} training prompts. "
            "Lower it, or give more prompts."
        )
        raise ConfigError(msg)
