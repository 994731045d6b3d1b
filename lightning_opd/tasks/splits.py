"""Disjoint splits by a hash of the question: the same question is always in the same split."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from lightning_opd.errors import ConfigError, did_you_mean
from lightning_opd.interfaces import Split
from lightning_opd.types import Prompt

if TYPE_CHECKING:
    from numpy.typing import NDArray

NUM_KEYS = 2.0**64


def question_key(*parts: str) -> str:
    """Return the hash of a question: 16 hexadecimal digits, the same on every machine."""
    return hashlib.blake2b("\x1f".join(parts).encode(), digest_size=8).hexdigest()


def order_of(key: str) -> int:
    """Return a number by which questions are ordered: a second hash, so that their order says nothing about them."""
    return int(question_key("order", key), 16)


@dataclass(frozen=True)
class SplitFractions:
    """How many of the questions a split gets; all others are trained on.

    Args:
        validation: Fraction for validation.
        test: Fraction for the test.

    Example:
        >>> SplitFractions(0.1, 0.3).split_of("b2" * 8)
        'validation'
    """

    validation: float = 0.1
    test: float = 0.3

    def __post_init__(self) -> None:
        """Refuse what leaves nothing to train on."""
        for name, fraction in (("validation", self.validation), ("test", self.test)):
            if isinstance(fraction, bool) or not isinstance(fraction, int | float) or not 0 <= fraction < 1:
                msg = f"`split.{name}` must be a fraction from 0 to 1, such as 0.1, got {fraction!r}."
                raise ConfigError(msg)
        if self.validation + self.test >= 1:
            msg = f"`split` leaves nothing to train on: {self.validation} + {self.test}. Lower the fractions."
            raise ConfigError(msg)

    @classmethod
    def of(cls, setting: str | Mapping[str, float]) -> SplitFractions:
        """Return the fractions that a setting asks for.

        Args:
            setting: `hash` for .1 validation and .3 test, or a mapping; what it leaves out is 0.

        Raises:
            ConfigError: It is something else.
        """
        if setting == "hash":
            return cls()
        if not isinstance(setting, Mapping):
            msg = f"`split` must be `hash`, or fractions such as `{{validation: 0.1, test: 0.3}}`, got {setting!r}."
            raise ConfigError(msg)
        unknown = next((name for name in setting if name not in ("validation", "test")), None)
        if unknown is not None:
            said = (
                " What is left is trained on." if unknown == "train" else did_you_mean(unknown, ["validation", "test"])
            )
            msg = f"`split` has fractions of `validation` and `test`, got `{unknown}`.{said}"
            raise ConfigError(msg)
        return cls(setting.get("validation", 0.0), setting.get("test", 0.0))

    def of_split(self, split: Split) -> float:
        """Return a split's fraction."""
        return {"train": 1 - self.validation - self.test, "validation": self.validation, "test": self.test}[split]

    def split_of(self, key: str) -> Split:
        """Return the split that a question belongs to.

        Args:
            key: Of `question_key`.
        """
        train, validation = self._borders
        place = int(key, 16) / NUM_KEYS
        if place < train:
            return "train"
        return "validation" if place < validation else "test"

    def is_in(self, keys: NDArray[np.uint64], split: Split) -> NDArray[np.bool_]:
        """Return for each key, as a number, whether it belongs to a split."""
        train, validation = self._borders
        places = keys.astype(np.float64) / NUM_KEYS
        if split == "train":
            return places < train
        if split == "validation":
            return (train <= places) & (places < validation)
        return (train <= places) & (validation <= places)

    @property
    def _borders(self) -> tuple[float, float]:
        """Return where training and validation end; 2 where nothing follows, since a large key rounds to 1."""
        train = round(1 - self.validation - self.test, 12) if self.validation or self.test else 2.0
        return train, train + self.validation if self.test else 2.0


def split_of(key: str) -> Split:
    """Return the split a question belongs to: .6 train, .1 validation, .3 test."""
    return SplitFractions().split_of(key)


def in_split(prompts: Iterable[Prompt], split: Split) -> Sequence[Prompt]:
    """Return a split's prompts in the order of a second hash, so that the first N are a random sample for any N."""
    return sorted((p for p in prompts if split_of(p.key) == split), key=lambda p: order_of(p.key))
