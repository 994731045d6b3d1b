"""The configs and recipes that come with the package, found by name where the current folder has none."""

from __future__ import annotations

import os
import sys
from importlib.resources import files
from pathlib import Path

from lightning_opd.errors import MissingFileError, did_you_mean

_PLACES = ("configs", "configs/trainer", "recipes", ".")


def shipped(kind: str) -> dict[str, Path]:
    """Return what the package brings, by its path there: every config (`*.yaml`), or every recipe (`recipe.yaml`).

    Example:
        >>> "recipes/merge_tiny" in shipped("recipe.yaml") and "configs/trainer/cpu.yaml" in shipped("*.yaml")
        True
    """
    package = Path(str(files("lightning_opd")))
    root = package / "_shipped" if (package / "_shipped").is_dir() else package.parent  # a wheel, or a checkout
    found = [path for folder in ("configs", "recipes") for path in sorted((root / folder).rglob(kind))]
    paths = [path.parent if kind == "recipe.yaml" else path for path in found]
    return {path.relative_to(root).as_posix(): path for path in paths}


def find(name: str, kind: str, what: str) -> Path:
    """Return the file or folder of that name: that of the current folder, or else the package's.

    Args:
        name: As typed: `opd.yaml`, `configs/opd.yaml`, `merge_tiny`, or any path.
        kind: That of `shipped`.
        what: What messages call it.

    Raises:
        MissingFileError: If neither has it, with those that the package has.
    """
    if Path(name).is_dir() if kind == "recipe.yaml" else Path(name).is_file():
        return Path(name)
    if kind != "recipe.yaml" and Path(name).is_dir():
        msg = f"{what} `{name}` is a folder; name a file in it."
        raise MissingFileError(msg)
    known = shipped(kind)
    for place in _PLACES:
        if path := known.get((Path(place) / name).as_posix()):
            return path
    short = {key.rpartition("/")[2]: key for key in known}
    cure = did_you_mean(name, known) or did_you_mean(Path(name).name, short)
    names = ", ".join(key for key in known if kind == "recipe.yaml" or key.startswith("configs/"))
    cure = cure or f" The package has {names}."
    msg = f"{what} `{name}` does not exist (looked in `{Path.cwd()}`, and in the package).{cure}"
    raise MissingFileError(msg)


def note_origin(name: str, path: Path) -> None:
    """Say in one line that a name stands for something of the package, and how to change it."""
    if not Path(name).exists() and os.environ.get("LOCAL_RANK", "0") == "0":
        copy = f"`python -m lightning_opd copy {name}` copies it here to be edited"
        sys.stderr.write(f"`{name}` is taken from the package ({path}); {copy}.\n")
