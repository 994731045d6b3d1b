"""What sees each rollout batch before it is split."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from lightning.pytorch.callbacks import Callback

from lightning_opd.types import RolloutBatch, RunSettings, Signal

if TYPE_CHECKING:
    import lightning as L


class OPDCallback(Callback):
    """A Lightning callback that also sees each training rollout batch before it is split.

    It may change `distill_mask`, `distill_weights` and `outcome_advantages` of the rollouts,
    nothing else. It is not called in validation.
    """

    @property
    def adds_outcome(self) -> bool:
        """Whether it sets outcome advantages."""
        return False

    @property
    def changes_rollouts(self) -> bool:
        """Whether what is learned depends on its settings, which a resumed run must then share."""
        return self.adds_outcome

    @property
    def needs_siblings(self) -> bool:
        """Whether it compares the responses to one prompt, of which there must be two or more."""
        return False

    @property
    def signals(self) -> frozenset[Signal]:
        """What it reads of the teachers' scores in the next rollout batch, beside what the objective asks for.

        By default the log-probs, in case it reads them; without a reader they are not computed.
        """
        return frozenset({Signal.LOGPROBS})

    def check(self, settings: RunSettings, signals: frozenset[Signal]) -> None:
        """Refuse settings of a run under which this callback would do something else than it says.

        Args:
            settings: Those that decide which objectives and callbacks are right.
            signals: What the objective asks of its teachers.

        Raises:
            ConfigError: With the setting and what to change, before anything is loaded.
        """

    def on_rollout_end(self, trainer: L.Trainer, module: L.LightningModule, rollouts: RolloutBatch) -> None:
        """Called once per rollout batch, on every rank, after generation, rewards and scores."""


class PhaseObserver(ABC):
    """A callback that is told what a run is doing while no batch ends, such as a progress bar."""

    @abstractmethod
    def on_phase(self, phase: str, num_done: int, num_total: int) -> None:
        """Called when a phase begins, and while it goes on, on every rank.

        Args:
            phase: `generate`, `score`, or `prepare`.
            num_done: Of its responses, those that are finished.
            num_total: All of them; 0 where they are not counted.
        """
