"""Hidden states of the tokens that are compared, each stored once, whatever becomes of the rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class ResponseStates:
    """States from which teachers predict response tokens; prompts and padding have none.

    Selecting, cutting or moving rows changes the index alone, so that the micro-batches of a rollout batch have the
    same states in memory.

    Args:
        values: Of each teacher, in the order of its head: `[states, hidden]`, in any order, of its own width.
        index: For each token, 1 + the place of its state among all teachers' values; 0 where it has none.
    """

    values: tuple[Float[Tensor, "_ _"], ...]
    index: Int[Tensor, "batch time"]

    @staticmethod
    def of(values: Float[Tensor, "states hidden"], mask: Bool[Tensor, "batch time"]) -> ResponseStates:
        """Return one teacher's states of the tokens where `mask` holds, given row by row."""
        return ResponseStates((values,), torch.where(mask, mask.flatten().cumsum(0).view_as(mask), 0))

    @staticmethod
    def empty(shape: torch.Size, device: torch.device) -> ResponseStates:
        """Return no teacher's states for tokens of a shape `[batch, time]`."""
        return ResponseStates((), torch.zeros(shape, dtype=torch.long, device=device))

    @property
    def num_stored(self) -> int:
        """States of all teachers."""
        return sum(len(values) for values in self.values)

    def with_teacher(self, rows: Int[Tensor, " rows"], columns: slice, states: ResponseStates | None) -> ResponseStates:
        """Return these states and those of the next teacher, which are about some rows and columns of the tokens.

        Args:
            rows: Of the next teacher.
            columns: That its rows use.
            states: Its own alone; None where it returned none.
        """
        if states is None:
            return ResponseStates((*self.values, self.index.new_zeros(0, 0, dtype=torch.float32)), self.index)
        [values] = states.values
        index = self.index.clone()
        index[rows, columns] = torch.where(states.index > 0, states.index + self.num_stored, 0)
        return ResponseStates((*self.values, values), index)

    def at(
        self, teacher: int, rows: Int[Tensor, " positions"], columns: Int[Tensor, " positions"]
    ) -> Float[Tensor, "positions _"]:
        """Return a teacher's states of some tokens; 0 where it has none."""
        values = self.values[teacher]
        place = self.index[rows, columns] - 1 - sum(len(others) for others in self.values[:teacher])
        if len(values) == 0:
            return values.new_zeros(len(place), values.shape[1])
        is_stored = (place >= 0) & (place < len(values))
        return values[place.clamp(0, len(values) - 1)].masked_fill_(~is_stored[:, None], 0.0)

    def map(self, function: Callable[[Tensor], Tensor]) -> ResponseStates:
        """Return the same states for tokens that a function selects, cuts, moves or pads with 0."""
        return ResponseStates(self.values, function(self.index))

    def marked(self, function: Callable[[Tensor], Tensor]) -> Bool[Tensor, "batch time"]:
        """Return for each token whether a function from `[states, hidden]` to `[states]` holds for its state."""
        nothing = torch.zeros(1, dtype=torch.bool, device=self.index.device)
        return torch.cat([nothing, *(function(values) for values in self.values)])[self.index]

    def compact(self) -> ResponseStates:
        """Return a copy without the states that no token has, to be saved."""
        used = self.index[self.index > 0].unique()  # in ascending order
        values, start = [], 0
        for own in self.values:
            place = used - 1 - start
            values.append(own[place[(place >= 0) & (place < len(own))]])
            start += len(own)
        index = torch.where(self.index > 0, torch.searchsorted(used, self.index.contiguous()) + 1, 0)
        return ResponseStates(tuple(values), index)
