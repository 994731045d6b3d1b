"""A local teacher's states after the tokens of trees, chunk by chunk, on all ranks equally often."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from jaxtyping import Float
from torch import Tensor

from lightning_opd.errors import ConfigError
from lightning_opd.models import READ_AT_ONCE, LanguageModel, TreeReading, max_over
from lightning_opd.types import TokenTree

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from transformers import DynamicCache

MAX_TREE_TOKENS = 2**16
"""Most tokens of a prompt with the tree of its reply: so many were measured, a reply of 16 k tokens of English; see
tests/benchmarks/README.md."""


class TreeReader:
    """Reads trunks, asks for their branches, and reads those.

    Args:
        model: Reads.
        name: Of the teacher, for messages.
        mesh: Ranks that its weights are sharded over, or None.
        gather_head: Keeps a whole copy of a sharded head, and frees the weights that a forward has gathered.
    """

    def __init__(
        self, model: LanguageModel, name: str, mesh: DeviceMesh | None, gather_head: Callable[[], None]
    ) -> None:
        """Remember them."""
        self._model, self._name, self._mesh, self._gather_head = model, name, mesh, gather_head

    def read(
        self, trunks: Iterable[Sequence[int]], branches: Callable[[Float[Tensor, "trunk hidden"]], TokenTree]
    ) -> Iterator[Float[Tensor, "branches hidden"]]:
        """Yield the states of one trunk's branches after the other; to be read to the end on every rank.

        Args:
            trunks: Texts in the teacher's tokens.
            branches: From the states of a trunk to what continues it.
        """
        from transformers import DynamicCache

        has_read, last_id = False, self._model.vocab_size - 1
        for group in _groups(trunks):
            cache, has_read = DynamicCache(), True
            lengths, trees = [len(trunk) for trunk in group], list[TokenTree]()
            known = [TokenTree([min(i, last_id) for i in trunk], range(-1, len(trunk) - 1)) for trunk in group]
            for trunk, states in zip(known, self._read(TreeReading(known, goes_on=True), cache), strict=True):
                more = branches(states)
                token_ids = [*trunk.token_ids, *(min(i, last_id) for i in more.token_ids)]
                trees.append(TokenTree(token_ids, [*trunk.parents, *more.parents]))
            reading = TreeReading(trees, num_read=lengths)
            yield from self._read(reading, cache)
            if not reading.chunks:
                yield from (states[:0] for _ in group)
        while num_more := self._most_chunks(0):  # another rank still has trees: join its collectives
            has_read = True
            self._read_dummies(num_more)
        if has_read:  # a forward has gathered the head's weights
            self._gather_head()

    def _read(self, reading: TreeReading, cache: DynamicCache) -> Iterator[Float[Tensor, "time hidden"]]:
        """Yield the states of a reading; run the model as often as the rank that runs it most."""
        check_length(self._name, max(reading.depths) + 1, self._model.max_length)
        self._check_tree(max(Counter(reading.trees).values()))
        num_chunks = len(reading.chunks)
        # a rank that says 0 has nothing left
        num_more = 0 if self._mesh is None else self._most_chunks(max(1, num_chunks)) - num_chunks
        for states in self._model.read_trees(reading, cache):
            self._gather_head()
            yield states
        self._read_dummies(num_more)

    def _read_dummies(self, num: int) -> None:
        """Join the collectives of another rank that reads so many chunks."""
        dummy = TreeReading([TokenTree([0, 0], [-1, 0])])
        for _ in range(num):
            list(self._model.read_trees(dummy))

    def _check_tree(self, num_tokens: int) -> None:
        if num_tokens > MAX_TREE_TOKENS:
            msg = (
                f"{self._name.replace('teacher', 'Teacher', 1)} has to read {num_tokens} tokens for one reply (credit "
                f"`PrefixCredit`: one for nearly every byte), more than the {MAX_TREE_TOKENS} that were ever tried. "
                "Lower `data.sampling.max_new_tokens`, or use the credit `SpanCredit`: it takes plain forwards."
            )
            raise ConfigError(msg)

    def _most_chunks(self, num_chunks: int) -> int:
        """Return how many chunks of trees this rank must read, dummies included, where it has so many."""
        return num_chunks if self._mesh is None else max_over(self._mesh, num_chunks)


def check_length(name: str, longest: int, max_length: int) -> None:
    """Refuse a sequence that a teacher has no positions for.

    Raises:
        ConfigError: With both numbers.
    """
    if longest > max_length:
        msg = (
            f"A trajectory has {longest} tokens, more than the {max_length} positions of {name}. Lower "
            "`data.sampling.max_new_tokens`, or shorten the prompts."
        )
        raise ConfigError(msg)


def _groups(trunks: Iterable[Sequence[int]]) -> Iterator[list[Sequence[int]]]:
    """Yield trunks together, as many as it takes for one chunk."""
    group: list[Sequence[int]] = []
    for trunk in trunks:
        group.append(trunk)
        if sum(map(len, group)) >= READ_AT_ONCE:
            yield group
            group = []
    if group:
        yield group
