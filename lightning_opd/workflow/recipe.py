"""Reads `recipe.yaml` and finds the folder behind a recipe's name."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from lightning_opd.errors import ConfigError, MissingFileError, did_you_mean
from lightning_opd.options.shipped import find
from lightning_opd.options.sources import read_text, read_yaml
from lightning_opd.options.table import command_names


@dataclass(frozen=True)
class StepSpec:
    """One step as `recipe.yaml` words it.

    Args:
        name: Also the name of its folder of outputs.
        command: What to run.
        config: YAML file or files, relative to the recipe's folder; the later one wins.
        overrides: Command line words after them.
    """

    name: str = ""
    command: str = ""
    config: str | list[str] = dataclasses.field(default_factory=list)
    overrides: list[str] = dataclasses.field(default_factory=list)

    def problem(self, folder: Path) -> str | None:
        """Return what is wrong with it, or None; `folder` is the recipe's."""
        if not self.name or Path(str(self.name)).name != self.name:
            return f"expected `name`, a word that can name a folder, got `{self.name}`."
        if self.command not in command_names():
            cure = f"{did_you_mean(str(self.command), command_names())} Commands: {', '.join(command_names())}."
            return f"`{self.command}` is not a command.{cure}"
        if type(self.overrides) is not list:
            return f"`overrides` must be a list of command line words, got `{self.overrides}`."
        if self.command == "run" and str([*self.overrides, "-"][0]).startswith("-"):
            return f"a step that runs another recipe names it first in `overrides`, got {self.overrides}."
        missing = [file for file in self.configs(folder) if not file.is_file()]
        return f"`config` names `{missing[0]}`, which does not exist." if missing else None

    def configs(self, folder: Path) -> list[Path]:
        """Return the YAML files, the later one wins; `folder` is the recipe's."""
        return [folder / str(file) for file in (self.config if isinstance(self.config, list) else [self.config])]


@dataclass(frozen=True)
class Recipe:
    """An ordered list of steps; their outputs lie in `runs/<name of the folder>`."""

    folder: Path
    steps: tuple[StepSpec, ...]

    def position(self, step: str) -> int:
        """Return where a step stands in the recipe, or raise a `ConfigError` if there is none of that name."""
        names = [spec.name for spec in self.steps]
        if step not in names:
            cure = f"{did_you_mean(step, names)} Steps: {', '.join(names)}."
            msg = f"recipe `{self.folder.name}` has no step `{step}`.{cure}"
            raise ConfigError(msg)
        return names.index(step)


def find_recipe(recipe: str) -> Path:
    """Return the folder of a recipe, given as a folder or as the name of a recipe that comes with the package."""
    return find(recipe, "recipe.yaml", "recipe").resolve()


def read_recipe(folder: Path) -> Recipe:
    """Read the recipe of a folder, which holds `recipe.yaml` and the YAML files of its steps.

    Raises:
        ConfigError: If a step is not worded as it should be, or a file is missing.
    """
    path = folder / "recipe.yaml"
    if not path.is_file():
        msg = f"`{folder}` has no `recipe.yaml`; a recipe is a folder with an ordered list `steps:` in that file."
        raise MissingFileError(msg)
    content = read_yaml(f"`{path}`", read_text(path, "recipe"))
    steps = content.get("steps") if isinstance(content, dict) else None
    if not isinstance(steps, list) or not steps:
        msg = f"`{path}` must hold a list `steps:` of `{{name, command, config, overrides}}`."
        raise ConfigError(msg)
    specs = tuple(_read_step(f"`{path}`, step {index}", folder, step) for index, step in enumerate(steps, start=1))
    names = [spec.name for spec in specs]
    if repeated := [name for name in names if names.count(name) > 1]:
        msg = f"`{path}` has several steps named `{repeated[0]}`; each needs a name, and with it a folder, of its own."
        raise ConfigError(msg)
    return Recipe(folder, specs)


def _read_step(place: str, folder: Path, step: object) -> StepSpec:
    fields = [field.name for field in dataclasses.fields(StepSpec)]
    known = f"Fields: {', '.join(fields)}."
    if not isinstance(step, dict):
        msg = f"{place}: expected a mapping, got `{step}`. {known}"
        raise ConfigError(msg)
    for key in [str(key) for key in step if key not in fields]:
        msg = f"{place}: `{key}` is not a field of a step.{did_you_mean(key, fields)} {known}"
        raise ConfigError(msg)
    spec = StepSpec(**step)
    if problem := spec.problem(folder):
        msg = f"{place} (`{spec.name}`): {problem}"
        raise ConfigError(msg)
    return spec
