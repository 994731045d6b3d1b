"""A step with its variables filled in, its fingerprint, and the marker that says how far it came."""

from __future__ import annotations

import hashlib
import json
import shlex
import shutil
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_opd import __version__
from lightning_opd.cli.commands import TRAINER_COMMANDS
from lightning_opd.cli.recipe.spec import find_recipe, read_recipe
from lightning_opd.cli.sources import Variables, dump_yaml, read_yaml

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lightning_opd.cli.recipe.spec import Recipe, StepSpec

_MARKER = "step.json"


class State(Enum):
    """What an earlier run left of a step."""

    MISSING = "missing"
    INTERRUPTED = "interrupted"
    FINISHED = "finished"
    OUTDATED = "outdated"


@dataclass(frozen=True)
class Step:
    """One step, ready to run.

    Args:
        name: Name of the step.
        command: What to run.
        folder: Its outputs.
        configs: File name → configuration, variables filled in.
        overrides: Command line words after the configs.
        fingerprint: Hash of everything that its outputs depend on.
    """

    name: str
    command: str
    folder: Path
    configs: Mapping[str, object]
    overrides: tuple[str, ...]
    fingerprint: str

    @property
    def checkpoint(self) -> Path:
        """The checkpoint from which an interrupted `fit` goes on."""
        return self.folder / "checkpoints" / "last.ckpt"

    def words(self, *, resume: bool = False) -> list[str]:
        """Return the command and the words that run this step alone."""
        configs = [word for name in self.configs for word in ("--config", str(self.folder / "inputs" / name))]
        checkpoint = ["--ckpt_path", str(self.checkpoint)] if resume and self.command == "fit" else []
        return [self.command, *configs, *self.overrides, *checkpoint]

    def command_line(self, *, resume: bool = False) -> str:
        """Return the same as one would type it."""
        return shlex.join(["python", "-m", "lightning_opd", *self.words(resume=resume)])

    def state(self) -> State:
        """Return what an earlier run left."""
        marker = self.folder / _MARKER
        if not marker.is_file():
            return State.OUTDATED if self.folder.is_dir() and any(self.folder.iterdir()) else State.MISSING
        content = json.loads(marker.read_text(encoding="utf-8"))
        if content.get("fingerprint") != self.fingerprint:
            return State.OUTDATED
        if content.get("finished"):
            return State.FINISHED
        can_go_on = self.command == "script" or (self.command == "fit" and self.checkpoint.is_file())
        return State.INTERRUPTED if can_go_on else State.OUTDATED

    def begin(self) -> None:
        """Write the inputs and note that the step has begun."""
        inputs = self.folder / "inputs"
        inputs.mkdir(parents=True, exist_ok=True)
        for name, config in self.configs.items():
            (inputs / name).write_text(dump_yaml(config), encoding="utf-8")
        self._mark(finished=False, seconds=0.0)

    def finish(self, seconds: float) -> None:
        """Note that the step has finished, after so many seconds."""
        self._mark(finished=True, seconds=seconds)

    def archive(self, folder: Path) -> None:
        """Move old outputs to a folder, in place of what was moved there before."""
        target = folder / self.name
        shutil.rmtree(target, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        self.folder.rename(target)

    def _mark(self, *, finished: bool, seconds: float) -> None:
        content = {
            "fingerprint": self.fingerprint,
            "finished": finished,
            "seconds": round(seconds, 3),
            "version": __version__,
            "command": self.command_line(),
        }
        partial = self.folder / f"{_MARKER}.partial"
        partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        partial.replace(self.folder / _MARKER)


@dataclass(frozen=True)
class Outcome:
    """What became of a step.

    Args:
        step: The step.
        status: `done`, `resumed` or `skipped`.
        seconds: Wall-clock time; 0 where it was skipped.
    """

    step: Step
    status: str
    seconds: float


def resolve(recipe: Recipe, output: str, seed: int) -> list[Step]:
    """Fill in where the outputs lie and the seed; every step's fingerprint covers those before it.

    Args:
        recipe: Its YAML files speak of `${run}`, `${runs}`, `${recipe}` and `${seed}`.
        output: Folder for the outputs of all recipes.
        seed: Trainer commands also get it as `seed_everything`, scripts as `seed`, other recipes as their seed.
    """
    variables = Variables(recipe.folder, output.rstrip("/"), seed)
    steps: list[Step] = []
    previous = f"{__version__} {seed}"
    for spec in recipe.steps:
        if spec.command == "run":
            other = read_recipe(find_recipe(spec.overrides[0]))
            previous += resolve(other, output, seed)[-1].fingerprint
        if spec.command == "script":
            previous += "".join(path.read_text(encoding="utf-8") for path in sorted(recipe.folder.glob("*.py")))
        steps.append(_resolve_step(spec, recipe.folder, variables, previous))
        previous = steps[-1].fingerprint
    return steps


def _resolve_step(spec: StepSpec, folder: Path, variables: Variables, previous: str) -> Step:
    written: dict[str, object] = {}
    for index, path in enumerate(spec.configs(folder), start=1):
        name = path.name if path.name not in written else f"{index}_{path.name}"
        written[name] = read_yaml(f"`{path}`", path.read_text(encoding="utf-8"))
    meaning = [spec.name, spec.command, list(written.values()), spec.overrides, previous]
    fingerprint = hashlib.sha256(json.dumps(meaning, default=str).encode()).hexdigest()
    configs = {name: variables.resolve(config, f"in `{name}`") for name, config in written.items()}
    overrides = [str(variables.resolve(str(word), f"in step `{spec.name}`")) for word in spec.overrides]
    seed = str(variables.seed)
    if spec.command in TRAINER_COMMANDS:
        overrides += ["--seed_everything", seed]
    elif spec.command == "script":
        overrides += ["--seed", seed]
    elif spec.command == "run":
        overrides += ["--seed", seed, "--output", variables.output]
    outputs = Path(variables.output) / folder.name / f"seed{seed}" / spec.name
    return Step(spec.name, spec.command, outputs, configs, tuple(overrides), fingerprint)
