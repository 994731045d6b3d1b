"""Many prompts in little memory: packed one by one, and unpacked when they are asked for."""

from __future__ import annotations

import pickle
from array import array
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, overload

import numpy as np
from typing_extensions import override

from lightning_opd.errors import ConfigError
from lightning_opd.tasks.splits import SplitFractions, order_of
from lightning_opd.types import Prompt

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lightning_opd.interfaces import Split


class PromptStore:
    """Prompts in the order in which they were added, as bytes: about as large as the file that they come from.

    Example:
        >>> store = PromptStore()
        >>> store.add(Prompt(({"role": "user", "content": "Hi"},), "0" * 16, "math", "math"), "rows.jsonl:", 7)
        >>> store.all()[0].place, store.all()[0].messages[0]["content"]
        ('rows.jsonl:7', 'Hi')
    """

    def __init__(self) -> None:
        """Begin without prompts."""
        self._data = bytearray()
        self._ends, self._keys = array("Q", [0]), array("Q")
        self._numbers, self._label_ids = array("I"), array("I")
        self._labels: list[tuple[str, str, str]] = []
        self._ids: dict[tuple[str, str, str], int] = {}

    def add(self, prompt: Prompt, place: str, number: int) -> None:
        """Add a prompt.

        Args:
            prompt: Whose `place` is left out.
            place: What stands before its number in its place.
            number: Of its row.

        Raises:
            ConfigError: A column holds what cannot be copied, such as a function.
        """
        try:
            self._data += pickle.dumps((prompt.messages, prompt.columns), protocol=5)
        except (pickle.PicklingError, TypeError, AttributeError) as error:
            msg = f"{place}{number}: a column holds what cannot be copied ({error}). Use texts, numbers and lists."
            raise ConfigError(msg) from None
        self._ends.append(len(self._data))
        self._keys.append(int(prompt.key, 16))
        self._numbers.append(number)
        label = (prompt.teacher, prompt.domain, place)
        if label not in self._ids:
            self._ids[label] = len(self._labels)
            self._labels.append(label)
        self._label_ids.append(self._ids[label])

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._keys)

    def prompt(self, index: int) -> Prompt:
        """Return the prompt that was added as number `index`, from 0."""
        packed = memoryview(self._data)[self._ends[index] : self._ends[index + 1]]
        messages, columns = pickle.loads(packed)
        teacher, domain, place = self._labels[self._label_ids[index]]
        key = f"{self._keys[index]:016x}"
        return Prompt(messages, key, teacher, domain, columns, f"{place}{self._numbers[index]}")

    def all(self) -> PromptView:
        """Return all, in the order in which they were added."""
        return PromptView(self, np.arange(len(self)))

    def shuffled(self) -> PromptView:
        """Return all in the order of a hash, so that the first N are a random sample for any N."""
        return self._ordered(np.arange(len(self)))

    def split(self, fractions: SplitFractions, split: Split) -> PromptView:
        """Return the prompts of a split in the order of a hash; the same as `in_split` of a list."""
        return self._ordered(np.flatnonzero(fractions.is_in(np.array(self._keys, dtype=np.uint64), split)))

    def _ordered(self, indices: NDArray[np.int64]) -> PromptView:
        places = np.fromiter((order_of(f"{self._keys[i]:016x}") for i in indices), np.uint64, len(indices))
        return PromptView(self, indices[np.argsort(places, kind="stable")])


class PromptView(Sequence[Prompt]):
    """Some prompts of a store, in some order. Each is unpacked when it is asked for, and is nobody's afterwards.

    Args:
        store: All prompts.
        indices: Which of them.
    """

    def __init__(self, store: PromptStore, indices: NDArray[np.int64]) -> None:
        """Remember which."""
        self._store, self._indices = store, indices

    @override
    def __len__(self) -> int:
        return len(self._indices)

    @overload
    def __getitem__(self, index: int) -> Prompt: ...
    @overload
    def __getitem__(self, index: slice) -> list[Prompt]: ...
    @override
    def __getitem__(self, index: int | slice) -> Prompt | list[Prompt]:
        if isinstance(index, slice):
            return [self._store.prompt(i) for i in self._indices[index].tolist()]
        return self._store.prompt(int(self._indices[index]))

    @override
    def __iter__(self) -> Iterator[Prompt]:
        return (self._store.prompt(int(i)) for i in self._indices)

    @override
    def __eq__(self, other: object) -> bool:
        """Return whether another sequence has equal prompts in the same order."""
        if not isinstance(other, Sequence) or isinstance(other, str) or len(other) != len(self):
            return False
        return all(mine == theirs for mine, theirs in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]  # as that of a list
