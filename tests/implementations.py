"""Finds every final subclass of an abstract class, so that contract tests cover a new one at once."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any, TypeVar

import pytest

T = TypeVar("T")


def subclasses(base: type[T]) -> Iterator[type[T]]:
    """Yield every subclass, at any depth."""
    for child in base.__subclasses__():
        yield child
        yield from subclasses(child)


def import_all(package: ModuleType) -> None:
    """Import every module of a package, so that its subclasses exist."""
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        importlib.import_module(module.name)


def implementations(base: type[T], package: ModuleType, examples: Mapping[str, Sequence[T]] | None = None) -> list[Any]:
    """Return one test parameter per final subclass of `base` that the package ships.

    Args:
        base: The abstract class.
        package: Where to look.
        examples: Instances, by class name, of the classes that cannot be built without arguments
            (or deserve more than their defaults).
    """
    import_all(package)
    examples = examples or {}
    found: list[Any] = []
    for child in dict.fromkeys(subclasses(base)):
        if inspect.isabstract(child) or not child.__module__.startswith(f"{package.__name__}."):
            continue
        try:
            instances = list(examples.get(child.__name__, ())) or [child()]
        except TypeError as error:
            msg = (
                f"`{child.__name__}` needs arguments ({error}); add instances of it to `examples` in its contract test."
            )
            raise TypeError(msg) from error
        found += [
            pytest.param(instance, id=f"{child.__name__}-{i}" if i else child.__name__)
            for i, instance in enumerate(instances)
        ]
    return found
