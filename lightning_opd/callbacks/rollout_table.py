"""Shows a few rollouts during training."""

from __future__ import annotations

import lightning as L  # Lightning's own convention
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from typing_extensions import override

from lightning_opd.errors import ConfigError
from lightning_opd.interfaces import OPDCallback
from lightning_opd.types import RolloutBatch


class RolloutTable(OPDCallback):
    """Show sampled responses with reward, format errors and KL, in the console and in TensorBoard.

    Args:
        num_samples: Responses per table, spread over the rollout batch.
        every_n_batches: Rollout batches from one table to the next.
        console: Whether to print the table as well.
    """

    def __init__(self, num_samples: int = 4, every_n_batches: int = 50, console: bool = True) -> None:  # a key in YAML
        """Check the numbers."""
        for name, value in (("num_samples", num_samples), ("every_n_batches", every_n_batches)):
            if value < 1:
                msg = f"`{name}` must be at least 1, got {value}."
                raise ConfigError(msg)
        self.num_samples, self.every_n_batches, self.console = num_samples, every_n_batches, console
        self._num_batches = 0

    @override
    def on_rollout_end(self, trainer: L.Trainer, module: L.LightningModule, rollouts: RolloutBatch) -> None:
        is_due = self._num_batches % self.every_n_batches == 0
        self._num_batches += 1
        if not is_due or not trainer.is_global_zero:
            return
        rows = rollout_rows(rollouts, self.num_samples)
        if self.console:
            _print(rows, trainer.global_step)
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_text("rollouts", markdown(rows), trainer.global_step)


HEADER = ("prompt", "response", "teacher", "reward", "format", "KL (nats/token)")


def rollout_rows(rollouts: RolloutBatch, num_samples: int) -> list[tuple[str, ...]]:
    """Return one row of text per shown response, in the order of `HEADER`."""
    step = max(1, len(rollouts) // num_samples)
    mask = rollouts.response_mask & rollouts.aligned_mask
    kl = torch.where(mask, rollouts.rollout_logprobs - rollouts.teacher_logprobs, 0.0).sum(1) / mask.sum(1).clamp(min=1)
    rows: list[tuple[str, ...]] = []
    for index in range(0, len(rollouts), step)[:num_samples]:
        trajectory = rollouts.trajectories[index]
        rows.append(
            (
                str(trajectory.prompt.messages[-1].get("content", "")),
                trajectory.text,
                trajectory.prompt.teacher,
                f"{trajectory.reward:g}",
                ", ".join(trajectory.format_errors) or "ok",
                f"{float(kl[index]):.3f}",
            )
        )
    return rows


def markdown(rows: list[tuple[str, ...]]) -> str:
    """Return the rows as a Markdown table; tags and line breaks stay visible."""
    lines = [HEADER, ("---",) * len(HEADER)]
    lines += [tuple(f"`{cell}`".replace("|", "\\|").replace("\n", "⏎") for cell in row) for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _print(rows: list[tuple[str, ...]], step: int) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=f"rollouts at step {step}", title_justify="left", show_lines=True)
    for name in HEADER:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    Console().print(table)
