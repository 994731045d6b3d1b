"""Reads `recipe.yaml` and finds the folder behind a recipe's name."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from lightning_opd.cli.commands import command_names
from lightning_opd.cli.sources import read_yaml
from lightning_opd.errors import ConfigError, MissingFileError, did_you_mean


@dataclass(frozen=True)
class StepSpec:
    """One step as `recipe.yaml` words it.

    Args:
        name: Also the name of its folder of outputs.
        command: What to run.
        config: YAML file or files, relative to the recipe's folder; the later one wins.
        overrides: Command line words after them.
    """

    name: str
    command: str
    config: str | list[str] = dataclasses.field(default_factory=list)
    overrides: list[str] = dataclasses.field(default_factory=list)

    def __post_init__(self) -> None:
        """Refuse a name that is no folder, an unknown command, and overrides that are no list.

        Raises:
            ConfigError: With the field and what was given.
        """
        if not isinstance(self.name, str) or not self.name or Path(self.name).name != self.name:
            msg = f"expected `name`, a word that can name a folder, got `{self.name}`."
            raise ConfigError(msg)
        if self.command not in command_names():
            cure = f"{did_you_mean(str(self.command), command_names())} Commands: {', '.join(command_names())}."
            msg = f"`{self.command}` is not a command.{cure}"
            raise ConfigError(msg)
        if not isinstance(self.overrides, list):
            msg = f"`overrides` must be a list of command line words, got `{self.overrides}`."
            raise ConfigError(msg)
        if self.command == "run" and (not self.overrides or str(self.overrides[0]).startswith("-")):
            msg = f"a step that runs another recipe names it first in `overrides`, got {self.overrides}."
            raise ConfigError(msg)

    def configs(self, folder: Path) -> list[Path]:
        """Return the YAML files, the later one wins.

        Args:
            folder: Of the recipe.
        """
        return [folder / str(file) for file in (self.config if isinstance(self.config, list) else [self.config])]


@dataclass(frozen=True)
class Recipe:
    """An ordered list of steps.

    Args:
        folder: Where it stands; outputs lie in `runs/<name of the folder>`.
        steps: In the order in which they run.
    """

    folder: Path
    steps: tuple[StepSpec, ...]

    @property
    def name(self) -> str:
        """Name of the folder."""
        return self.folder.name

    def position(self, step: str) -> int:
        """Return where a step stands in the recipe.

        Raises:
            ConfigError: If there is no such step.
        """
        names = [spec.name for spec in self.steps]
        if step not in names:
            msg = f"recipe `{self.name}` has no step `{step}`.{did_you_mean(step, names)} Steps: {', '.join(names)}."
            raise ConfigError(msg)
        return names.index(step)


def find_recipe(recipe: str) -> Path:
    """Return the folder of a recipe.

    Args:
        recipe: A folder, or the name of a recipe that comes with the package.

    Raises:
        MissingFileError: If there is neither.
    """
    if Path(recipe).is_dir():
        return Path(recipe).resolve()
    package = Path(str(files("lightning_opd")))
    shipped = {
        path.parent.name: path.parent
        for folder in (package.parent / "recipes", package / "_shipped" / "recipes")
        for path in sorted(folder.glob("*/recipe.yaml"))
    }
    if recipe in shipped:
        return shipped[recipe]
    msg = (
        f"`{recipe}` is neither a folder nor a recipe of this package.{did_you_mean(recipe, shipped)} "
        f"Recipes: {', '.join(sorted(shipped)) or 'none'}."
    )
    raise MissingFileError(msg)


def read_recipe(folder: Path) -> Recipe:
    """Read the recipe of a folder.

    Args:
        folder: Holds `recipe.yaml` and the YAML files of its steps.

    Raises:
        ConfigError: If a step is not worded as it should be, or its YAML is missing.
    """
    path = folder / "recipe.yaml"
    if not path.is_file():
        msg = f"`{folder}` has no `recipe.yaml`; a recipe is a folder with an ordered list `steps:` in that file."
        raise MissingFileError(msg)
    content = read_yaml(f"`{path}`", path.read_text(encoding="utf-8"))
    steps = content.get("steps") if isinstance(content, dict) else None
    if not isinstance(steps, list) or not steps:
        msg = f"`{path}` must hold a list `steps:` of `{{name, command, config, overrides}}`."
        raise ConfigError(msg)
    specs = tuple(_read_step(f"`{path}`, step {index}", folder, step) for index, step in enumerate(steps, start=1))
    names = [spec.name for spec in specs]
    for name in names:
        if names.count(name) > 1:
            msg = f"`{path}` has several steps named `{name}`; each needs a name, and with it a folder, of its own."
            raise ConfigError(msg)
    return Recipe(folder, specs)


def _read_step(place: str, folder: Path, step: object) -> StepSpec:
    fields = [field.name for field in dataclasses.fields(StepSpec)]
    if not isinstance(step, dict):
        msg = f"{place}: expected `{{{', '.join(fields)}}}`, got `{step}`."
        raise ConfigError(msg)
    for key in step:
        if key not in fields:
            cure = f"{did_you_mean(str(key), fields)} Fields: {', '.join(fields)}."
            msg = f"{place}: `{key}` is not a field of a step.{cure}"
            raise ConfigError(msg)
    try:
        spec = StepSpec(**{"name": "", "command": "", **step})
    except ConfigError as error:
        msg = f"{place}: {error}"
        raise ConfigError(msg) from error
    for file in spec.configs(folder):
        if not file.is_file():
            msg = f"{place} (`{spec.name}`): `config` names `{file}`, which does not exist."
            raise MissingFileError(msg)
    return spec
