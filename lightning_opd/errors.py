"""The errors that tell a user what to change in the settings."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


class ConfigError(ValueError):
    """Settings that cannot work; the text says what was expected, what was given, and what to change.

    The command line prints the text without a traceback.
    """


class ConfigTypeError(ConfigError, TypeError):
    """A setting of the wrong class."""


class MissingFileError(ConfigError, FileNotFoundError):
    """A file or folder that the settings name and that does not exist."""


class MissingPackageError(ConfigError, ImportError):
    """A library that the settings need and that is not installed."""


class UnsupportedError(ConfigError, NotImplementedError):
    """A method that the settings need and that the chosen class does not override."""


def closest(word: str, known: Iterable[str]) -> str | None:
    """Return the known word that is spelled most like `word`, or None where none is close.

    Args:
        word: What was given.
        known: What could have been meant.

    Example:
        >>> closest("divergance", ["divergence", "estimator"])
        'divergence'
    """
    return next(iter(difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)), None)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return a question that names the closest known word, with a space in front; empty where none is close.

    Args:
        word: What was given.
        known: What could have been meant.

    Example:
        >>> did_you_mean("ft", ["fit", "test"])
        ' Did you mean `fit`?'
    """
    best = closest(word, known)
    return f" Did you mean `{best}`?" if best else ""
