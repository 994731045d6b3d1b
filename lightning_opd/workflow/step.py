"""A step with its variables filled in, its fingerprint, and the marker that says how far it came."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

import yaml

from lightning_opd import __version__
from lightning_opd.options.sources import Variables, read_yaml
from lightning_opd.options.table import TRAINER_COMMANDS
from lightning_opd.workflow.recipe import find_recipe, read_recipe

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lightning_opd.workflow.recipe import Recipe, StepSpec

_MARKER = "step.json"


State: TypeAlias = Literal["finished", "interrupted", "outdated"]
"""What an earlier run left of a step; a step that was never run counts as outdated."""


@dataclass(frozen=True)
class Step:
    """One step, ready to run; its variables are filled in, its fingerprint covers all that its outputs depend on."""

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

    def command_line(self) -> str:
        """Return the same as one would type it."""
        return shlex.join(["python", "-m", "lightning_opd", *self.words()])

    def state(self) -> State:
        """Return what an earlier run left."""
        content = self._marked()
        if content.get("fingerprint") != self.fingerprint:
            return "outdated"
        can_go_on = self.command == "script" or (self.command == "fit" and self.checkpoint.is_file())
        return "finished" if content.get("finished") else "interrupted" if can_go_on else "outdated"

    def _marked(self) -> dict[str, object]:
        """Return what the marker says: nothing where there is none; one that cannot be read is set aside, and said."""
        marker = self.folder / _MARKER
        if not marker.is_file():
            return {}
        try:
            content = json.loads(marker.read_text(encoding="utf-8"))
        except ValueError:
            content = None
        if isinstance(content, dict):
            return content
        from lightning.pytorch.utilities.rank_zero import rank_zero_warn

        unreadable = marker.replace(self.folder / f"{_MARKER}.unreadable")
        rank_zero_warn(f"`{marker}` cannot be read and now is `{unreadable.name}`; its step is run again.")
        return {}

    def begin(self) -> None:
        """Write the inputs and note that the step has begun."""
        inputs = self.folder / "inputs"
        inputs.mkdir(parents=True, exist_ok=True)
        for name, config in self.configs.items():
            text = yaml.safe_dump(config, sort_keys=False, allow_unicode=True, width=10**9)
            (inputs / name).write_text(text, encoding="utf-8")
        self.mark(finished=False)

    def mark(self, *, finished: bool, seconds: float = 0.0) -> None:
        """Note how far the step came, after so many seconds."""
        content = {"fingerprint": self.fingerprint, "finished": finished, "seconds": round(seconds, 3)}
        content |= {"version": __version__, "command": self.command_line()}
        partial = self.folder / f"{_MARKER}.partial"
        with partial.open("w", encoding="utf-8") as file:
            file.write(json.dumps(content, indent=2) + "\n")
            file.flush()
            os.fsync(file.fileno())
        partial.replace(self.folder / _MARKER)

    def archive(self, folder: Path) -> None:
        """Move old outputs to a folder, in place of what was moved there before."""
        shutil.rmtree(folder / self.name, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        self.folder.rename(folder / self.name)


def resolve(recipe: Recipe, output: str, seed: int) -> list[Step]:
    """Fill in the variables; every step's fingerprint covers the steps before it.

    Trainer commands also get the seed as `seed_everything`, scripts and other recipes as `seed`.
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
        steps.append(_resolve_step(spec, variables, previous))
        previous = steps[-1].fingerprint
    return steps


def _resolve_step(spec: StepSpec, variables: Variables, previous: str) -> Step:
    written: dict[str, object] = {}
    for index, path in enumerate(spec.configs(variables.recipe), start=1):
        name = path.name if path.name not in written else f"{index}_{path.name}"
        written[name] = read_yaml(f"`{path}`", path.read_text(encoding="utf-8"))
    meaning = [spec.name, spec.command, list(written.values()), spec.overrides, previous]
    fingerprint = hashlib.sha256(json.dumps(meaning, default=str).encode()).hexdigest()
    configs = {name: variables.resolve(config, f"in `{name}`") for name, config in written.items()}
    overrides = [str(variables.resolve(str(word), f"in step `{spec.name}`")) for word in spec.overrides]
    seed = str(variables.seed)
    if spec.command in TRAINER_COMMANDS:
        overrides += ["--seed_everything", seed]
    elif spec.command in {"run", "script"}:
        overrides += ["--seed", seed]
    if spec.command == "run":
        overrides += ["--output", variables.output]
    folder = Path(variables.output) / variables.recipe.name / f"seed{seed}" / spec.name
    return Step(spec.name, spec.command, folder, configs, tuple(overrides), fingerprint)
