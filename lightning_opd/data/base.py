"""What every data module asks its trainer: the trainer itself, this process's place, the run's seed."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial

import lightning as L  # Lightning's own convention

from lightning_opd.collection.resume import RecordsSettings
from lightning_opd.errors import ConfigError
from lightning_opd.interfaces import OPDCallback
from lightning_opd.types import RolloutBatch, Signal


class TrainerDataModule(L.LightningDataModule, RecordsSettings):
    """A data module that works inside a trainer.

    Attributes:
        seed: Of order and noise; None for that of `seed_everything`, or 0.
    """

    seed: int | None = None

    def _trainer(self) -> L.Trainer:
        if self.trainer is None:
            msg = f"{type(self).__name__} works inside a Trainer; call `trainer.fit(module, datamodule)`."
            raise RuntimeError(msg)
        return self.trainer

    def _run_seed(self) -> int:
        return int(os.environ.get("PL_GLOBAL_SEED", "0")) if self.seed is None else self.seed

    def _data_rank(self) -> tuple[int, int]:
        """Return this process's rank among those that share the data, and their number."""
        kwargs = self._trainer().distributed_sampler_kwargs or {}
        return kwargs.get("rank", 0), kwargs.get("num_replicas", 1)

    def _rollout_callbacks(self) -> tuple[Sequence[tuple[str, Callable[[RolloutBatch], None]]], frozenset[Signal]]:
        """Return name and function of each callback that a rollout batch goes through, and the signals they read."""
        trainer = self._trainer()
        found = [c for c in trainer.callbacks if isinstance(c, OPDCallback)]  # type: ignore[attr-defined]  # set by Lightning
        named = [(type(c).__name__, partial(c.on_rollout_end, trainer, trainer.lightning_module)) for c in found]
        return named, frozenset[Signal]().union(*(callback.signals for callback in found))

    def _per_rank(self, option: str) -> int:
        """Return what each process gets of a number that counts over all of them.

        Raises:
            ValueError: The processes cannot share it equally.
        """
        total, (_, num_ranks) = getattr(self, option), self._data_rank()
        if total % num_ranks:
            msg = (
                f"`data.{option}` is {total}, which {num_ranks} processes cannot share equally. "
                f"Use a multiple of {num_ranks}."
            )
            raise ConfigError(msg)
        return int(total // num_ranks)
