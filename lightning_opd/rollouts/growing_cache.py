"""Keys and values with space for further tokens: appending one copies one column, not the whole cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeGuard, cast, final

from jaxtyping import Float, Int
from torch import LongTensor, Tensor
from transformers.cache_utils import DynamicLayer
from typing_extensions import override

if TYPE_CHECKING:
    from transformers import DynamicCache

GROWTH = 1.5
"""Columns of a new storage ÷ columns of the one that has become too small."""


@dataclass(frozen=True)
class CachePart:
    """Rows of a new cache.

    Args:
        cache: Where their keys and values are.
        rows: Which rows of it, each as often as it is wanted; None takes all as they are.
        first: First column of it that is still needed.
    """

    cache: DynamicCache
    rows: Int[Tensor, " rows"] | None = None
    first: int = 0

    def states(self, index: int) -> tuple[Tensor, Tensor]:
        """Return a layer's keys and values, each `[rows, heads, time, dim]`."""
        layer = self.cache.layers[index]
        assert keeps_everything(layer)
        keys, values = (cast(Tensor, x)[:, :, self.first :] for x in (layer.keys, layer.values))
        return (keys, values) if self.rows is None else (keys[self.rows], values[self.rows])


@final
class GrowingLayer(DynamicLayer):
    """A layer that keeps all keys and values, in a storage with free columns.

    `keys` and `values` show the columns in use. When no column is free, the storage grows by half, but at first not
    beyond the columns that the rows will need at most.

    Args:
        parts: Keys and values of the rows one below the other, each `[rows, heads, time, dim]`; all end at the same
            column, and zeros fill up what comes before.
        limit: Columns that will be needed at most; more are possible.
    """

    def __init__(self, parts: Sequence[tuple[Tensor, Tensor]], limit: int) -> None:
        """Copy the parts."""
        super().__init__()  # type: ignore[no-untyped-call]  # transformers'
        columns = max(keys.shape[-2] for keys, _ in parts)
        capacity = min(max(limit, columns), int(GROWTH * columns) + 1)
        self._limit, self._columns = limit, columns
        self._keys = _stored([keys for keys, _ in parts], columns, capacity)
        self._values = _stored([values for _, values in parts], columns, capacity)
        self.device, self.is_initialized = self._keys.device, True
        self._show(len(self._keys))

    def _show(self, num_rows: int) -> None:
        self.keys = self._keys[:num_rows, :, : self._columns]
        self.values = self._values[:num_rows, :, : self._columns]

    @override
    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Append columns and return all keys and values."""
        assert self.keys is not None
        assert self.values is not None
        num_rows, start = len(key_states), self._columns
        self._columns += key_states.shape[-2]
        if self._columns > self._keys.shape[-2]:
            capacity = max(self._columns, min(max(self._limit, self._columns), int(GROWTH * self._keys.shape[-2]) + 1))
            self._keys, self._values = (_stored([x], start, capacity) for x in (self.keys, self.values))
        self._keys[:num_rows, :, start : self._columns] = key_states
        self._values[:num_rows, :, start : self._columns] = value_states
        self._show(num_rows)
        return self.keys, self.values

    def keep(self, targets: Int[Tensor, " moved"], sources: Int[Tensor, " moved"], num_rows: int) -> None:
        """Move some rows to the places of rows that are over, and leave out what then stands behind `num_rows`."""
        for storage in (self._keys, self._values):
            used = storage[:, :, : self._columns]
            used[targets] = used[sources]
        self._show(num_rows)

    @override
    def reorder_cache(self, beam_idx: LongTensor) -> None:
        assert self.keys is not None
        assert self.values is not None
        self._keys, self._values = (
            _stored([x[beam_idx]], self._columns, self._keys.shape[-2]) for x in (self.keys, self.values)
        )
        self._show(len(beam_idx))


def _stored(parts: Sequence[Tensor], columns: int, capacity: int) -> Float[Tensor, "rows heads capacity dim"]:
    """Return a storage of `capacity` columns, whose first `columns` hold the parts, each aligned on the right."""
    _, heads, _, dim = parts[0].shape
    storage = parts[0].new_empty(sum(map(len, parts)), heads, capacity, dim)
    row = 0
    for part in parts:
        rows, gap = storage[row : row + len(part)], columns - part.shape[-2]
        rows[:, :, :gap] = 0  # masked, but what is not finite would spoil a sum even so
        rows[:, :, gap:columns] = part
        row += len(part)
    return storage


def keeps_everything(layer: object) -> TypeGuard[DynamicLayer]:
    """Whether a cache's layer keeps all keys and values, and nothing else."""
    return type(layer) in (DynamicLayer, GrowingLayer)


def can_join(cache: DynamicCache) -> bool:
    """Whether rows can join others that are further ahead: every layer keeps all keys and values, or none."""
    return all(keeps_everything(layer) for layer in cache.layers)


def joined(parts: Sequence[CachePart], limit: int) -> DynamicCache:
    """Return one cache of all parts, whose last columns are the same; it takes the place of the first part's cache.

    Layers that keep all keys and values get space for further columns. Others (a sliding window, a recurrent
    state) stay what they are, and only one part is possible.

    Args:
        parts: Rows, in their order.
        limit: Columns that will be needed at most.
    """
    cache = parts[0].cache
    for index, layer in enumerate(cache.layers):
        if keeps_everything(layer):
            if layer.get_seq_length() > 0:
                cache.layers[index] = GrowingLayer([part.states(index) for part in parts], limit)
        elif parts[0].rows is not None:
            layer.reorder_cache(cast(LongTensor, parts[0].rows))  # every kind of layer can, unlike selecting
    return cache


def retire(cache: DynamicCache, kept: Int[Tensor, " kept"], num_kept: int) -> Int[Tensor, " kept"]:
    """Take rows out of a cache and return which old row each new one is.

    Where the storage allows, only as many rows are copied as leave: the last ones, into the gaps.

    Args:
        cache: Of `GrowingLayer` or of others.
        kept: Rows that stay, in rising order.
        num_kept: How many.
    """
    is_before = kept < num_kept
    sources = kept[~is_before]
    places = kept.new_ones(num_kept)
    places[kept[is_before]] = 0
    targets = places.nonzero().squeeze(-1)
    order = kept.new_zeros(num_kept)
    order[kept[is_before]] = kept[is_before]
    order[targets] = sources
    for layer in cache.layers:
        if isinstance(layer, GrowingLayer):
            layer.keep(targets, sources, num_kept)
        else:
            layer.reorder_cache(cast(LongTensor, order))
    return order
