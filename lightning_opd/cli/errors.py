"""Tells a mistake in the user's settings from a bug, and words it in a few lines."""

from __future__ import annotations

import difflib
import linecache
import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

USAGE_EXIT_CODE = 2
_PACKAGE = Path(__file__).resolve().parent.parent
_KINDS = (
    ValueError,
    TypeError,
    FileNotFoundError,
    NotADirectoryError,
    FileExistsError,
    KeyError,
    ImportError,
    NotImplementedError,
)


class UsageError(Exception):
    """A command or configuration that cannot be run; its text is all that the user needs."""


def closest(word: str, known: Iterable[str]) -> str | None:
    """Return the known word that `word` most likely meant, or None.

    Example:
        >>> closest("divergance", ["divergence", "estimator"])
        'divergence'
    """
    return next(iter(difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)), None)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return a question that names the closest known word, or nothing.

    Example:
        >>> did_you_mean("ft", ["fit", "test"])
        ' Did you mean `fit`?'
    """
    best = closest(word, known)
    return f" Did you mean `{best}`?" if best else ""


def wants_traceback() -> bool:
    """Return whether LIGHTNING_OPD_TRACEBACK asks for tracebacks of configuration errors."""
    return os.environ.get("LIGHTNING_OPD_TRACEBACK", "0") not in {"", "0"}


def find_settings_error(error: BaseException, *folders: Path) -> BaseException | None:
    """Return what the package raised on purpose, with a message made for the user, or None where `error` is a crash.

    On purpose means: a built-in type whose innermost frame is a `raise` statement of this package. A crash inside
    torch, a user's class or an expression of ours is a bug and keeps its traceback.

    Args:
        error: What was raised; its causes are looked at too, because the parser wraps what a constructor raises.
        folders: Other packages whose `raise` statements speak to the user.
    """
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, UsageError) or (isinstance(link, _KINDS) and _is_raised_in(link, (_PACKAGE, *folders))):
            return link
        link = link.__cause__
    return None


def message_of(error: BaseException) -> str:
    """Return the error's text; a `KeyError` without the quotes Python puts around it."""
    if isinstance(error, KeyError) and error.args:
        return str(error.args[0])
    return str(error) or type(error).__name__


def _is_raised_in(error: BaseException, folders: Iterable[Path]) -> bool:
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    if frame is None:
        return False
    path = Path(frame.tb_frame.f_code.co_filename)
    line = linecache.getline(str(path), frame.tb_lineno).strip()
    return line.startswith("raise ") and any(path.is_relative_to(folder) for folder in folders)
