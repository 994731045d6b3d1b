"""Demonstrations as supervised batches: only the responses count."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor
from typing_extensions import override

from lightning_opd.collection.resume import describe
from lightning_opd.data.base import TrainerDataModule
from lightning_opd.errors import ConfigError
from lightning_opd.interfaces import Split, Task
from lightning_opd.models import student_owner
from lightning_opd.tokenization.compatibility import padding_token_id
from lightning_opd.tokenization.turns import render_demonstration

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Example = tuple[list[int], list[bool]]


class SFTDataModule(TrainerDataModule):
    """Batches of a task's demonstrations, tokenised by the student's chat template.

    Args:
        task: Gives the demonstrations.
        batch_size: Examples per batch over all processes.
        num_examples: Demonstrations per epoch.
        num_validation_examples: Demonstrations of the validation split; 0 for none.
        max_length: Longest example in tokens; no longer than the student's context in any case.
        shuffle: Whether to mix the examples anew each epoch; not for a curriculum.
        seed: Of demonstrations and order; by default that of `seed_everything`, or 0.
        long_examples: What becomes of longer ones: `error`, or `drop`, which leaves them out and counts them. None is
            cut: without its beginning a reply answers another question, and without its end it never stops.
    """

    def __init__(
        self,
        task: Task,
        batch_size: int = 64,
        num_examples: int = 4096,
        num_validation_examples: int = 0,
        max_length: int = 512,
        shuffle: bool = True,  # a key in YAML
        seed: int | None = None,
        long_examples: Literal["error", "drop"] = "error",
    ) -> None:
        """Check the sizes; demonstrations are made in `setup`."""
        super().__init__()
        if not 1 <= batch_size <= num_examples:
            msg = f"`data.batch_size` must lie between 1 and `data.num_examples` ({num_examples}), got {batch_size}."
            raise ConfigError(msg)
        if num_validation_examples < 0 or max_length < 1:
            wrong = "max_length" if max_length < 1 else "num_validation_examples"
            value = max_length if max_length < 1 else num_validation_examples
            msg = f"`data.{wrong}` must be at least {int(max_length < 1)}, got {value}."
            raise ConfigError(msg)
        self.task, self.batch_size, self.max_length = task, batch_size, max_length
        self.shuffle, self.seed, self.long_examples = shuffle, seed, long_examples
        self.num_examples, self.num_validation_examples = num_examples, num_validation_examples
        self._train: list[Example] = []
        self._validation: list[Example] = []

    @override
    def setup(self, stage: str) -> None:
        self._per_rank("batch_size")  # refuses a wrong one before anything is rendered
        if stage == "fit":
            self._train = self._examples("train", self.num_examples)
        self._validation = self._examples("validation", self.num_validation_examples)
        if not self._validation:
            self._trainer().limit_val_batches = 0  # an empty loader is one that Lightning warns about

    def _examples(self, split: Split, num_examples: int) -> list[Example]:
        if num_examples == 0:
            return []
        tokenizer, rendered = self._tokenizer(), dict[str, Example]()
        examples = []
        for messages in self.task.demonstrations(split, num_examples, self._run_seed()):
            key = repr(messages)
            if key not in rendered:  # a small task repeats itself, and rendering takes most of the time
                rendered[key] = render_demonstration(tokenizer, messages)
            examples.append(rendered[key])
        return self._fitting(split, examples)

    def _fitting(self, split: Split, examples: Sequence[Example]) -> list[Example]:
        """Return the examples of a split that are not too long, and say how long all of them are."""
        context = student_owner(self._trainer().lightning_module).declared_max_length
        most, limit = min((self.max_length, "`data.max_length`"), (context, "the student's context of"))
        lengths = sorted(len(token_ids) for token_ids, _ in examples)
        kept = [example for example in examples if len(example[0]) <= most]
        num_long = len(examples) - len(kept)
        if num_long and self.long_examples == "error":
            msg = (
                f"{num_long:,} of {len(examples):,} demonstrations of `{split}` are too long: the longest has "
                f"{lengths[-1]} tokens, more than {limit} {most}. Set `data.long_examples` to `drop`, shorten the "
                "data, or raise the limit."
            )
            raise ConfigError(msg)
        if len(kept) < (self.batch_size if split == "train" else 0):
            msg = (
                f"{len(kept):,} demonstrations of `{split}` are no longer than {limit} {most}, too few for a batch of "
                f"`data.batch_size` {self.batch_size}. Raise the limit, or lower `data.batch_size`."
            )
            raise ConfigError(msg)
        if lengths:
            left_out = f"; {num_long:,} longer than {limit} {most} left out" if num_long else ""
            rank_zero_info(
                f"{split}: {len(examples):,} demonstrations of {lengths[0]:,} to {lengths[-1]:,} tokens (median "
                f"{lengths[len(lengths) // 2]:,}){left_out}."
            )
        return kept

    @override
    def resume_settings(self) -> dict[str, object]:
        names = ("batch_size", "num_examples", "shuffle")
        settings = {f"data.{name}": describe(getattr(self, name)) for name in names}
        settings |= {"data.task": type(self.task).__qualname__, "data.seed": self._run_seed()}
        if self._train:
            digest = hashlib.blake2b(repr(self._train).encode(), digest_size=8).hexdigest()
            settings["data.task.demonstrations"] = f"{len(self._train)} examples with hash {digest}"
        return settings

    def _tokenizer(self) -> PreTrainedTokenizerBase:
        return student_owner(self._trainer().lightning_module).tokenizer

    def _batches(self, examples: Sequence[Example], *, shuffle: bool) -> ExampleBatches:
        pad = padding_token_id(self._tokenizer())
        rank, num_ranks = self._data_rank()
        size = min(self.batch_size, len(examples) // num_ranks * num_ranks)
        return ExampleBatches(examples, size, pad, self._run_seed(), rank, num_ranks, shuffle=shuffle)

    @override
    def train_dataloader(self) -> ExampleBatches:
        return self._batches(self._train, shuffle=self.shuffle)

    @override
    def val_dataloader(self) -> ExampleBatches | list[ExampleBatches]:
        return self._batches(self._validation, shuffle=False) if self._validation else []


class ExampleBatches:
    """A sized loader that resumes in the middle of an epoch.

    Args:
        examples: (token ids, response mask) of each example.
        batch_size: Over all ranks; a last incomplete batch is dropped.
        pad_token_id: Fills rows up on the right.
        seed: Of the order.
        rank: This process among those that share the data.
        num_ranks: How many there are.
        shuffle: Whether each epoch has an order of its own.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        batch_size: int,
        pad_token_id: int,
        seed: int = 0,
        rank: int = 0,
        num_ranks: int = 1,
        *,
        shuffle: bool = True,
    ) -> None:
        """Start at the first batch of the first epoch."""
        self._examples, self._size, self._pad, self._seed = examples, batch_size, pad_token_id, seed
        self._rank, self._num_ranks, self._shuffle = rank, num_ranks, shuffle
        self._epoch = self._position = 0

    def __len__(self) -> int:
        """Return the number of batches per epoch."""
        return len(self._examples) // self._size

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        """Go on where the state says."""
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + self._epoch)
        count = len(self._examples)
        order = torch.randperm(count, generator=generator).tolist() if self._shuffle else list(range(count))
        for position in range(self._position, len(self)):
            self._position = position + 1  # before the yield: code after the last one never runs
            if self._position == len(self):
                self._position, self._epoch = 0, self._epoch + 1
            rows = order[position * self._size : (position + 1) * self._size][self._rank :: self._num_ranks]
            yield pad_examples([self._examples[row] for row in rows], self._pad)

    def state_dict(self) -> dict[str, Any]:
        """Return the place of the next batch."""
        return {"epoch": self._epoch, "position": self._position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved place."""
        self._epoch, self._position = state["epoch"], state["position"]


def pad_examples(examples: Sequence[Example], pad_token_id: int) -> dict[str, Tensor]:
    """Return `token_ids`, `attention_mask` and `response_mask`, each `[batch, time]`, padded on the right."""
    longest = max(len(token_ids) for token_ids, _ in examples)
    rows = [token_ids + [pad_token_id] * (longest - len(token_ids)) for token_ids, _ in examples]
    lengths = torch.tensor([len(token_ids) for token_ids, _ in examples])
    return {
        "token_ids": torch.tensor(rows),
        "attention_mask": torch.arange(longest)[None] < lengths[:, None],
        "response_mask": torch.tensor([mask + [False] * (longest - len(mask)) for _, mask in examples]),
    }
