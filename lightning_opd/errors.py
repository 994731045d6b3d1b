"""The errors that tell a user what to change in the settings, and suggestions of what was meant."""

from __future__ import annotations

import contextlib
import difflib
import importlib
import pkgutil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence


class ConfigError(ValueError):
    """Settings that cannot work; the text says what was expected, what was given, and what to change.

    The command line prints the text without a traceback.
    """


class CombinedConfigError(ConfigError):
    """Several things that are wrong with the settings.

    Args:
        problems: A text for each; they become lines.
    """

    def __init__(self, problems: Sequence[str]) -> None:
        """Join the lines."""
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


class Problems:
    """Collects what is wrong with the settings, so that a user reads all of it at once."""

    def __init__(self) -> None:
        """Start with none."""
        self._errors: list[ConfigError] = []

    def add(self, *texts: str) -> None:
        """Add problems, each once."""
        self._errors += [ConfigError(text) for text in texts if text not in self.found]

    @property
    def found(self) -> list[str]:
        """The text of each problem."""
        parts = (error.problems if isinstance(error, CombinedConfigError) else [str(error)] for error in self._errors)
        return list(dict.fromkeys(text for texts in parts for text in texts))

    @contextlib.contextmanager
    def collecting(self) -> Iterator[None]:
        """Go on after a settings error, and keep it."""
        try:
            yield
        except ConfigError as error:
            self._errors.append(error)

    def raise_all(self) -> None:
        """Raise what was found, several errors as one; return where nothing was.

        Raises:
            ConfigError: The only one, or `CombinedConfigError` with a line for each.
        """
        if len(self.found) == 1:
            raise self._errors[0]
        if self.found:
            raise CombinedConfigError(self.found)


class ConfigTypeError(ConfigError, TypeError):
    """A setting of the wrong class."""


class MissingFileError(ConfigError, FileNotFoundError):
    """A file or folder that the settings name and that does not exist."""


class CheckpointWriteError(ConfigError, OSError):
    """A checkpoint could not be written: a full disk, no rights."""


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


def class_path_problem(class_path: str) -> str:
    """Return why a class path leads nowhere, with a suggestion; empty where it leads somewhere.

    Args:
        class_path: Such as `torch.optim.AdamW`, or the bare name of a class that is loaded.

    Example:
        >>> class_path_problem("collections.OrderedDct")
        '`collections` has no `OrderedDct`. Did you mean `OrderedDict`?'
    """
    if "." not in class_path:
        names = {kind.__name__ for kind in _loaded_classes()}
        cure = f"{did_you_mean(class_path, names)} Give its import path, such as my_package.{class_path}."
        return "" if class_path in names else f"there is no class `{class_path}`.{cure}"
    parts = class_path.split(".")
    for depth in range(len(parts) - 1, 0, -1):
        try:
            module = importlib.import_module(".".join(parts[:depth]))
        except ImportError:
            continue
        inside = [info.name for info in pkgutil.iter_modules(getattr(module, "__path__", ()))]
        names = {name for name in [*dir(module), *inside] if not name.startswith("_")}
        missing = parts[depth]
        return "" if missing in names else f"`{module.__name__}` has no `{missing}`.{did_you_mean(missing, names)}"
    return f"module `{parts[0]}` of `{class_path}` cannot be imported; install it or add its folder to PYTHONPATH."


def own_subclasses(name: str) -> list[str]:
    """Return the class paths of this package's loaded subclasses of the class of that name, sorted."""
    own = [kind for kind in _loaded_classes() if str(kind.__module__).startswith("lightning_opd.")]
    kinds = [kind for kind in own if name in {parent.__name__ for parent in kind.__mro__[1:]}]
    return sorted(f"{kind.__module__}.{kind.__name__}" for kind in kinds)


def _loaded_classes() -> Iterator[type]:
    """Yield every public class that is loaded."""
    stack: list[type] = [object]
    seen: set[type] = set()
    while stack:
        kind = stack.pop()
        if kind not in seen:
            seen.add(kind)
            stack += type.__subclasses__(kind)
            if not kind.__name__.startswith("_"):
                yield kind
