"""Disjoint splits by a hash of the question: the same question is always in the same split."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

from lightning_opd.interfaces import Split
from lightning_opd.types import Prompt

TRAIN_FRACTION, VALIDATION_FRACTION = 0.6, 0.1


def question_key(*parts: str) -> str:
    """Return the hash of a question: 16 hexadecimal digits, the same on every machine."""
    return hashlib.blake2b("\x1f".join(parts).encode(), digest_size=8).hexdigest()


def split_of(key: str) -> Split:
    """Return the split a question belongs to: .6 train, .1 validation, .3 test."""
    place = int(key, 16) / 16**16
    if place < TRAIN_FRACTION:
        return "train"
    return "validation" if place < TRAIN_FRACTION + VALIDATION_FRACTION else "test"


def in_split(prompts: Iterable[Prompt], split: Split) -> Sequence[Prompt]:
    """Return a split's prompts in the order of a second hash, so that the first N are a random sample for any N."""
    return sorted((p for p in prompts if split_of(p.key) == split), key=lambda p: question_key("order", p.key))
