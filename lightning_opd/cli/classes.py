"""What the classes behind a configuration accept: their keys, their components, their neighbours in spelling."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import pkgutil
import types
import typing
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from jsonargparse import ArgumentParser

if TYPE_CHECKING:
    from lightning_opd.cli.sources import KeyPath, Tree

ROOT_KEYS = ("seed_everything", "trainer", "model", "data", "ckpt_path")
_DEFAULTS = {
    "trainer": "lightning.pytorch.Trainer",
    "model": "lightning_opd.OPDModule",
    "data": "lightning_opd.OPDDataModule",
}


def find_class(class_path: str) -> type | None:
    """Import a class by its path, or return None."""
    module, _, name = class_path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name, None) if module else None
    except ImportError:
        return None
    return found if isinstance(found, type) else None


def owner_of(tree: Tree, path: KeyPath) -> type | None:
    """Return the class that accepts the keys at a path, or None where that cannot be told.

    Args:
        tree: The whole configuration.
        path: Leads to a mapping; `init_args` and `class_path` are looked through.
    """
    path = tuple(key for key in path if key != "init_args")
    if not path:
        return None
    node = _node(tree, path)
    named = node.get("class_path") if isinstance(node, Mapping) else node
    if isinstance(named, str) and (found := find_class(named) or _imported_class(tree, path, named)):
        return found
    if len(path) == 1:
        return find_class(_DEFAULTS.get(path[0], ""))
    return next((kind for kind in expected_classes(tree, path) if dataclasses.is_dataclass(kind)), None)


def known_keys(tree: Tree, path: KeyPath) -> list[str]:
    """Return the keys that may stand in the mapping at a path; empty where that cannot be told."""
    if not path:
        return list(ROOT_KEYS)
    owner = owner_of(tree, path)
    return sorted(_parameters(owner)) if owner else []


def expected_classes(tree: Tree, path: KeyPath) -> list[type]:
    """Return the classes of which the value at a path may be an instance."""
    path = tuple(key for key in path if key != "init_args")
    for depth in range(len(path) - 1, 0, -1):
        owner = owner_of(tree, path[:depth])
        if owner is None:
            continue
        hint = _hints(owner).get(path[depth])
        return [] if hint is None else [kind for kind in _leaves(hint) if inspect.isclass(kind)]
    return []


def subclasses(base: type) -> list[type]:
    """Return all concrete subclasses that are loaded."""
    found: dict[type, None] = {}
    children: list[type] = base.__subclasses__()
    for child in children:
        found |= dict.fromkeys([child, *subclasses(child)])
    return [sub for sub in found if not inspect.isabstract(sub) and not sub.__name__.startswith("_")]


def public_path(kind: type) -> str:
    """Return the shortest import path of a class: its package's, where that exports it."""
    module = kind.__module__
    package = module.rpartition(".")[0]
    exported = bool(package) and getattr(importlib.import_module(package), kind.__name__, None) is kind
    return f"{package if exported else module}.{kind.__name__}"


def neighbours(class_path: str) -> tuple[str, list[str]]:
    """Return the longest importable part of a class path, and the names to be found there."""
    parts = class_path.split(".")
    for depth in range(len(parts) - 1, 0, -1):
        module_path = ".".join(parts[:depth])
        try:
            module = importlib.import_module(module_path)
        except ImportError:
            continue
        inside = [module_info.name for module_info in pkgutil.iter_modules(getattr(module, "__path__", ()))]
        return module_path, [name for name in [*dir(module), *inside] if not name.startswith("_")]
    return "", []


def _node(tree: object, path: KeyPath) -> object:
    for key in path:
        if isinstance(tree, Mapping):
            inner = tree.get("init_args")
            tree = tree.get(key, inner.get(key) if isinstance(inner, Mapping) else None)
        elif isinstance(tree, Sequence) and not isinstance(tree, str) and key.isdigit() and int(key) < len(tree):
            tree = tree[int(key)]
        else:
            return None
    return tree


def _imported_class(tree: Tree, path: KeyPath, name: str) -> type | None:
    return next(
        (sub for base in expected_classes(tree, path) for sub in subclasses(base) if sub.__name__ == name), None
    )


def _parameters(owner: type) -> set[str]:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(owner, fail_untyped=False, instantiate=False)
    return {key.split(".")[0] for key in parser.get_defaults(skip_validation=True).keys()}  # noqa: SIM118  # no mapping: it cannot be iterated


def _hints(owner: type) -> dict[str, object]:
    merged: dict[str, object] = {}
    for base in reversed(owner.__mro__):
        try:
            merged |= typing.get_type_hints(base if dataclasses.is_dataclass(base) else vars(base).get("__init__"))
        except (NameError, TypeError):
            continue
    return merged


def _leaves(hint: object) -> list[object]:
    origin = typing.get_origin(hint)
    if origin is None:
        return [hint]
    if origin in {typing.Union, types.UnionType} or not (
        isinstance(origin, type) and origin.__module__ == "collections.abc" and origin.__name__ == "Callable"
    ):
        return [leaf for argument in typing.get_args(hint) for leaf in _leaves(argument)]
    return _leaves(typing.get_args(hint)[-1])
