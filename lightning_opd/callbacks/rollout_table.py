"""Shows a few rollouts during training."""

from __future__ import annotations

import re
from typing import Any

import lightning as L  # Lightning's own convention
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from rich import get_console
from rich.table import Table
from rich.text import Text
from typing_extensions import override

from lightning_opd.errors import ConfigError
from lightning_opd.interfaces import OPDCallback
from lightning_opd.tokenization.visible import shortened, visible
from lightning_opd.types import RolloutBatch, Signal

MAX_LINES = 40
"""Most lines of one cell in the console."""
MAX_LOGGED_CHARACTERS = 100_000
"""Most characters of one cell in TensorBoard."""


class RolloutTable(OPDCallback):
    """Show sampled responses with reward, format errors and KL, in the console and in TensorBoard.

    Control characters in prompts and responses are written out, so that they do nothing to a terminal.

    Args:
        num_samples: Responses per table, spread over the rollout batch.
        every_n_batches: Rollout batches from one table to the next.
        console: Whether to print the table as well.
        max_characters: Most characters of a prompt or a response in the console; its beginning and end are shown.
    """

    def __init__(
        self,
        num_samples: int = 4,
        every_n_batches: int = 50,
        console: bool = True,  # a key in YAML
        max_characters: int = 1000,
    ) -> None:
        """Check the numbers."""
        numbers = {"num_samples": num_samples, "every_n_batches": every_n_batches, "max_characters": max_characters}
        for name, value in numbers.items():
            if value < 1:
                msg = f"`{name}` must be at least 1, got {value}."
                raise ConfigError(msg)
        self.num_samples, self.every_n_batches, self.console = num_samples, every_n_batches, console
        self.max_characters = max_characters
        self._num_batches = 0

    @property
    @override
    def signals(self) -> frozenset[Signal]:
        return frozenset({Signal.LOGPROBS} if self._is_due else ())

    @property
    def _is_due(self) -> bool:
        return self._num_batches % self.every_n_batches == 0

    @override
    def on_rollout_end(self, trainer: L.Trainer, module: L.LightningModule, rollouts: RolloutBatch) -> None:
        is_due = self._is_due
        self._num_batches += 1
        if not is_due or not trainer.is_global_zero:
            return
        rows = rollout_rows(rollouts, self.num_samples)
        if self.console:
            print_rows(rows, trainer.global_step, self.max_characters)
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_text("rollouts", markdown(rows), trainer.global_step)

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"num_batches": self._num_batches}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._num_batches = state_dict["num_batches"]


RATIOS = {"prompt": 1, "response": 2}
"""How the columns of text divide the width that the others leave."""
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
    """Return the rows as a Markdown table; tags, line breaks and control characters stay visible."""
    lines = [HEADER, ("---",) * len(HEADER)]
    lines += [
        tuple(_code(shortened(cell, MAX_LOGGED_CHARACTERS, MAX_LOGGED_CHARACTERS)) for cell in row) for row in rows
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _code(text: str) -> str:
    """Return a text as Markdown's code, in more backticks than it has in a row."""
    text = shortened(text, MAX_LOGGED_CHARACTERS, MAX_LOGGED_CHARACTERS)
    fence = "`" * (1 + max((len(found) for found in re.findall("`+", text)), default=0))
    padding = " " if "`" in text else ""
    return f"{fence}{padding}{visible(text)}{padding}{fence}".replace("|", "\\|").replace("\n", "⏎")


def print_rows(rows: list[tuple[str, ...]], step: int, max_characters: int) -> None:
    """Print the rows as a table as wide as the terminal."""
    table = Table(title=f"rollouts at step {step}", title_justify="left", show_lines=True, expand=True)
    for name in HEADER:
        table.add_column(name, overflow="fold", ratio=RATIOS.get(name))
    for row in rows:
        table.add_row(*(Text(shortened(visible(cell), max_characters, MAX_LINES)) for cell in row))
    get_console().print(table)
