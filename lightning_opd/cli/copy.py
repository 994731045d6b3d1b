"""The command `copy`: a config or a recipe of the package, to be edited."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from lightning_opd.errors import ConfigError
from lightning_opd.options.shipped import find, shipped
from lightning_opd.workflow.recipe import read_recipe


def copy(name: str, /, output: str | None = None) -> None:
    """Copy a config or a recipe that comes with the package.

    The copy lies under the name that was given, so that `--config NAME` and `run NAME` take it from now on.

    Args:
        name: A config such as opd.yaml or configs/trainer/fsdp.yaml, or a recipe such as merge_tiny.
        output: File or folder to write instead.
    """
    kind = "*.yaml" if Path(name).suffix == ".yaml" else "recipe.yaml"
    path, target = find(name, kind, "config" if kind == "*.yaml" else "recipe"), Path(output or name)
    if path not in shipped(kind).values():
        msg = f"`{name}` lies in the current folder already; edit it there, or move it away and copy again."
        raise ConfigError(msg)
    if target.exists():
        msg = f"`{target}` exists, and is not written over; choose another `--output`, or move it away."
        raise ConfigError(msg)
    copies = {target: path}
    if kind == "recipe.yaml":  # it may take steps from another one beside it
        steps = [file.resolve().parent for step in read_recipe(path).steps for file in step.configs(path)]
        copies |= {
            target.parent / other.name: other for other in steps if other.parent == path.parent and other != path
        }
    for to, original in copies.items():
        to.parent.mkdir(parents=True, exist_ok=True)
        if original.is_file():
            shutil.copyfile(original, to)
        elif not to.exists():
            shutil.copytree(original, to, ignore=shutil.ignore_patterns("__pycache__"))
        sys.stdout.write(f"{original} → {to}\n")
