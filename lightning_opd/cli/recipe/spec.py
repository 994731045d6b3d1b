"""Reads `recipe.yaml` and finds the folder behind a recipe's name."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import yaml

from lightning_opd.cli.errors import UsageError, did_you_mean
from lightning_opd.cli.verbs import verb_names

_FIELDS = ("name", "verb", "config", "overrides")


@dataclass(frozen=True)
class StepSpec:
    """One step as `recipe.yaml` words it.

    Args:
        name: Also the name of its folder of outputs.
        verb: What to run.
        configs: YAML files, the later one wins.
        overrides: Command line words after them.
    """

    name: str
    verb: str
    configs: tuple[Path, ...]
    overrides: tuple[str, ...]


@dataclass(frozen=True)
class Recipe:
    """An ordered list of steps.

    Args:
        name: Name of the folder; outputs lie in `runs/<name>`.
        folder: Where it stands.
        steps: In the order in which they run.
    """

    name: str
    folder: Path
    steps: tuple[StepSpec, ...]

    def position(self, step: str) -> int:
        """Return where a step stands in the recipe.

        Raises:
            UsageError: If there is no such step.
        """
        names = [spec.name for spec in self.steps]
        if step not in names:
            msg = f"recipe `{self.name}` has no step `{step}`.{did_you_mean(step, names)} Steps: {', '.join(names)}."
            raise UsageError(msg)
        return names.index(step)


def find_recipe(recipe: str) -> Path:
    """Return the folder of a recipe.

    Args:
        recipe: A folder, or the name of a recipe that comes with the package.

    Raises:
        UsageError: If there is neither.
    """
    if Path(recipe).is_dir():
        return Path(recipe).resolve()
    package = Path(str(files("lightning_opd")))
    shipped = {
        path.parent.name: path.parent
        for home in (package.parent / "recipes", package / "_shipped" / "recipes")
        for path in sorted(home.glob("*/recipe.yaml"))
    }
    if recipe in shipped:
        return shipped[recipe]
    msg = (
        f"`{recipe}` is neither a folder nor a recipe of this package.{did_you_mean(recipe, shipped)} "
        f"Recipes: {', '.join(sorted(shipped)) or 'none'}."
    )
    raise UsageError(msg)


def read_recipe(folder: Path) -> Recipe:
    """Read the recipe of a folder.

    Args:
        folder: Holds `recipe.yaml` and the YAML files of its steps.

    Raises:
        UsageError: If a step is not worded as it should be, or its YAML is missing.
    """
    path = folder / "recipe.yaml"
    if not path.is_file():
        msg = f"`{folder}` has no `recipe.yaml`; a recipe is a folder with an ordered list `steps:` in that file."
        raise UsageError(msg)
    content = load_yaml(path)
    steps = content.get("steps") if isinstance(content, dict) else None
    if not isinstance(steps, list) or not steps:
        msg = f"`{path}` must hold a list `steps:` of `{{name, verb, config, overrides}}`."
        raise UsageError(msg)
    specs = tuple(_read_step(path, index, step) for index, step in enumerate(steps, start=1))
    names = [spec.name for spec in specs]
    for name in names:
        if names.count(name) > 1:
            msg = f"`{path}` has several steps named `{name}`; each needs a name, and with it a folder, of its own."
            raise UsageError(msg)
    return Recipe(folder.name, folder, specs)


def load_yaml(path: Path) -> object:
    """Read a YAML file.

    Raises:
        UsageError: If it is not YAML.
    """
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        msg = f"`{path}` is not valid YAML: {' '.join(str(error).split())}"
        raise UsageError(msg) from error


def _read_step(path: Path, index: int, step: object) -> StepSpec:
    where = f"`{path}`, step {index}"
    if not isinstance(step, dict):
        msg = f"{where}: expected `{{name, verb, config, overrides}}`, got `{step}`."
        raise UsageError(msg)
    for key in step:
        if key not in _FIELDS:
            cure = f"{did_you_mean(str(key), _FIELDS)} Fields: {', '.join(_FIELDS)}."
            msg = f"{where}: `{key}` is not a field of a step.{cure}"
            raise UsageError(msg)
    name, verb = step.get("name"), step.get("verb")
    if not isinstance(name, str) or not name or Path(name).name != name:
        msg = f"{where}: expected `name`, a word that can name a folder, got `{name}`."
        raise UsageError(msg)
    if verb not in verb_names():
        msg = (
            f"{where}: `{verb}` is not a verb.{did_you_mean(str(verb), verb_names())} Verbs: {', '.join(verb_names())}."
        )
        raise UsageError(msg)
    overrides = step.get("overrides") or []
    if not isinstance(overrides, list):
        msg = f"{where}: `overrides` must be a list of command line words, got `{overrides}`."
        raise UsageError(msg)
    if verb == "run" and (not overrides or str(overrides[0]).startswith("-")):
        msg = f"{where} (`{name}`): a step that runs another recipe names it first in `overrides`, got {overrides}."
        raise UsageError(msg)
    config = step.get("config") or []
    configs = tuple(path.parent / str(file) for file in (config if isinstance(config, list) else [config]))
    for file in configs:
        if not file.is_file():
            msg = f"{where} (`{name}`): `config` names `{file}`, which does not exist."
            raise UsageError(msg)
    return StepSpec(name, str(verb), configs, tuple(str(word) for word in overrides))
