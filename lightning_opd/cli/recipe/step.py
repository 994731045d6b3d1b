"""A step with its paths and seed filled in, its fingerprint, and the marker that says how far it came."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import shlex
import shutil
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from lightning_opd import __version__
from lightning_opd.cli.recipe.spec import find_recipe, read_recipe
from lightning_opd.cli.verbs import TRAINER_VERBS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

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
        verb: What to run.
        folder: Its outputs.
        configs: File name → text, paths and seed filled in.
        overrides: Command line words after the configs.
        fingerprint: Hash of everything that its outputs depend on.
    """

    name: str
    verb: str
    folder: Path
    configs: Mapping[str, str]
    overrides: tuple[str, ...]
    fingerprint: str

    @property
    def checkpoint(self) -> Path:
        """The checkpoint from which an interrupted `fit` goes on."""
        return self.folder / "checkpoints" / "last.ckpt"

    def command(self, *, resume: bool = False) -> list[str]:
        """Return the verb and the words that run this step alone."""
        configs = [word for name in self.configs for word in ("--config", str(self.folder / "inputs" / name))]
        checkpoint = ["--ckpt_path", str(self.checkpoint)] if resume and self.verb == "fit" else []
        return [self.verb, *configs, *self.overrides, *checkpoint]

    def command_line(self, *, resume: bool = False) -> str:
        """Return that command as one would type it."""
        return shlex.join(["python", "-m", "lightning_opd", *self.command(resume=resume)])

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
        can_go_on = self.verb == "script" or (self.verb == "fit" and self.checkpoint.is_file())
        return State.INTERRUPTED if can_go_on else State.OUTDATED

    def begin(self) -> None:
        """Write the inputs and note that the step has begun."""
        inputs = self.folder / "inputs"
        inputs.mkdir(parents=True, exist_ok=True)
        for name, text in self.configs.items():
            (inputs / name).write_text(text, encoding="utf-8")
        self._mark(finished=False, seconds=0.0)

    def finish(self, seconds: float) -> None:
        """Note that the step has finished, after so many seconds."""
        self._mark(finished=True, seconds=seconds)

    def set_aside(self, folder: Path) -> None:
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
        recipe: Speaks of `runs/<recipe>/seed0`; of another recipe's outputs, too, if a step runs that.
        output: Folder that takes the place of `runs`.
        seed: Takes the place of 0; Trainer verbs also get it as `seed_everything`, scripts as `seed`.
    """
    home = output.rstrip("/")
    root = f"{home}/{recipe.name}/seed{seed}"
    others = {
        spec.overrides[0]: read_recipe(find_recipe(spec.overrides[0])) for spec in recipe.steps if spec.verb == "run"
    }
    names = "|".join(re.escape(name) for name in (recipe.name, *(other.name for other in others.values())))
    pattern = re.compile(rf"(?<![\w./-])runs/({names})/seed0(?![\w-])")

    def relocate(text: str) -> str:
        return pattern.sub(lambda match: f"{home}/{match[1]}/seed{seed}", text)

    steps: list[Step] = []
    scripts = "".join(path.read_text(encoding="utf-8") for path in sorted(recipe.folder.glob("*.py")))
    previous = f"{__version__} {seed}"
    for spec in recipe.steps:
        if spec.verb == "run":
            previous += resolve(others[spec.overrides[0]], output, seed)[-1].fingerprint
            spec = dataclasses.replace(spec, overrides=(*spec.overrides, "--seed", str(seed), "--output", home))  # noqa: PLW2901  # the same step, with its place
        steps.append(_resolve_step(spec, relocate, Path(root) / spec.name, seed, previous, scripts))
        previous = steps[-1].fingerprint
    return steps


def _resolve_step(
    spec: StepSpec, relocate: Callable[[str], str], folder: Path, seed: int, previous: str, scripts: str
) -> Step:
    texts: dict[str, str] = {}
    for index, path in enumerate(spec.configs, start=1):
        name = path.name if path.name not in texts else f"{index}_{path.name}"
        texts[name] = relocate(path.read_text(encoding="utf-8"))
        if spec.verb == "script":  # wherever the recipe lies, its scripts lie beside it
            texts[name] = re.sub(r"^file: recipes/[^/\n]+/", f"file: {path.parent}/", texts[name], flags=re.MULTILINE)
    overrides = tuple(relocate(word) for word in spec.overrides)
    if spec.verb in TRAINER_VERBS:
        overrides += ("--seed_everything", str(seed))
    if spec.verb == "script":
        overrides += ("--seed", str(seed))
        previous += scripts
    meaning = [spec.name, spec.verb, [yaml.safe_load(text) for text in texts.values()], overrides, previous]
    fingerprint = hashlib.sha256(json.dumps(meaning, default=str).encode()).hexdigest()
    return Step(spec.name, spec.verb, folder, texts, overrides, fingerprint)
