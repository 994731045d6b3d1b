"""The commands that need no trainer, with wrong words, folders and files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file

from tests.bad_inputs.row import Bad, Prepare

SCORES = ("parity", "student=HERE/scores.json", "--output", "HERE/new")
TOKENIZER = ("tokenizer", "--task", "lightning_opd.tasks.Strings", "--output", "HERE/new")
AVERAGE = ("average", "--base", "WORLD/student", "--models", "[WORLD/math]", "--output", "HERE/new")
EXPORT = ("export", "--checkpoint", "HERE/last.ckpt", "--config", "HERE/good.yaml", "--output", "HERE/new")
TRAINING: dict[str, object] = {"state_dict": {}, "pytorch-lightning_version": "2.6.0"}
ROW = {"key": "a", "domain": "d", "teacher": "t", "split": "test", "mode": "greedy", "reward": 1.0}


def files(**contents: str | bytes) -> Prepare:
    """Return what writes files, whose dots are underlined twice in their names here."""

    def prepare(world: Path, folder: Path) -> None:
        for name, content in contents.items():
            path = folder / name.replace("__", ".").replace("_in_", "/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content.encode() if isinstance(content, str) else content)

    return prepare


def saved(**contents: object) -> Prepare:
    def prepare(world: Path, folder: Path) -> None:
        torch.save(contents, folder / "last.ckpt")

    return prepare


def saved_beside_another_config(world: Path, folder: Path) -> None:
    saved(**TRAINING)(world, folder)
    (folder / "odd.yaml").write_text("data: {}\n")


def tensors(content: Mapping[str, torch.Tensor]) -> Prepare:
    def prepare(world: Path, folder: Path) -> None:
        (folder / "other").mkdir()
        save_file(dict(content), folder / "other" / "model.safetensors")

    return prepare


def words(name: str, *command: str, says: tuple[str, ...], prepare: Prepare | None = None) -> Bad:
    return Bad(name, says, command=command, prepare=prepare)


def recipe(name: str, content: str | bytes, *says: str) -> Bad:
    return words(
        f"recipe: {name}",
        "run",
        "HERE/mine",
        "--output",
        "HERE/new",
        says=says,
        prepare=files(mine_in_recipe__yaml=content),
    )


def scores(name: str, content: object, *says: str) -> Bad:
    text = content if isinstance(content, str) else json.dumps(content)
    return words(
        f"scores: {name}",
        "parity",
        "student=HERE/scores.json",
        "--output",
        "HERE/new",
        says=("HERE/scores.json", *says),
        prepare=files(scores__json=text),
    )


def script(name: str, content: str | bytes, *says: str, more: tuple[str, ...] = ()) -> Bad:
    return words(
        f"script: {name}",
        "script",
        "HERE/step.py",
        *more,
        says=("HERE/step.py", *says),
        prepare=files(step__py=content),
    )


WORDS = [
    words("an unknown command", "ft", says=("`ft` is not a command", "Did you mean `fit`?")),
    words("an option first", "--config", "x.yaml", "fit", says=("expected a command first", "fit --config")),
    words("an option and no command", "--verbose", says=("expected a command first",)),
    words("an empty word", "", says=("is not a command",)),
    words("a misspelled option", "average", "--bas", "x", says=("Did you mean `base`?",)),
    words("a word too many", *AVERAGE, "more", says=("more",)),
    words("an option without its value", "average", "--base", says=("base",)),
    words("fit without anything", "fit", says=("`data.task` must be given",)),
]

RECIPES = [
    words("recipe: unknown", "run", "merge_tinny", says=("`merge_tinny`", "Did you mean `recipes/merge_tiny`?")),
    words("recipe: none", "run", says=("`run` expects `recipe`",)),
    words("recipe: a folder without one", "run", "WORLD", says=("no `recipe.yaml`",)),
    words(
        "recipe: unknown step",
        "run",
        "merge_tiny",
        "--until",
        "tset",
        "--output",
        "HERE/new",
        says=("no step `tset`", "test_base"),
    ),
    words("recipe: a seed that is a word", "run", "merge_tiny", "--seed", "one", says=("seed", "one")),
    words(
        "recipe: output below a file",
        "run",
        "merge_tiny",
        "--output",
        "HERE/taken/runs",
        says=("`HERE/taken`", "file"),
        prepare=files(taken="x"),
    ),
    recipe("empty", "", "recipe.yaml", "`steps:`"),
    recipe("Latin-1", "é".encode("latin-1"), "recipe.yaml", "UTF-8"),
    recipe("broken", "steps: [", "recipe.yaml", "not valid YAML"),
    recipe("no steps", "steps: []\n", "recipe.yaml", "`steps:`"),
    recipe("a step that is a word", "steps: [fit]\n", "step 1", "expected a mapping"),
    recipe("a step of two keys of one name", "steps: [{name: a, name: b, command: fit}]\n", "twice"),
    recipe("a misspelled field", "steps: [{nam: a}]\n", "`nam`", "Did you mean `name`?"),
    recipe("a misspelled command", "steps: [{name: a, command: fitt}]\n", "Did you mean `fit`?"),
    recipe("a missing file", "steps: [{name: a, command: fit, config: no.yaml}]\n", "no.yaml", "does not exist"),
    recipe("two steps of one name", "steps: [{name: a, command: fit}, {name: a, command: fit}]\n", "named `a`"),
    recipe("a name that is a path", "steps: [{name: a/b, command: fit}]\n", "`name`", "a/b"),
]

SCRIPTS = [
    words("script: none", "script", says=("`script` expects `file`",)),
    words("script: missing", "script", "HERE/no.py", says=("HERE/no.py", "does not exist")),
    script("without main", "x = 1\n", "no function `main`"),
    script("of wrong syntax", "def main(:\n", "line 1"),
    script("of wrong encoding", "def main(seed):\n    return '\xe9'\n".encode("latin-1"), "UTF-8"),
    script(
        "with an unknown argument",
        "def main(seed, size): ...\n",
        "no argument `siz`",
        "Did you mean `size`?",
        more=("--arguments", "{siz: 3}"),
    ),
    script("with a missing argument", "def main(seed, size): ...\n", "needs `size`"),
    script("that takes no seed", "def main(): ...\n", "seed"),
    script("that is no Python", b"\x00\x01", "Python"),
    words(
        "script: a text file",
        "script",
        "HERE/step.txt",
        says=("HERE/step.txt", "Python"),
        prepare=files(step__txt="def main(seed): ..."),
    ),
]

TABLE = [*WORDS, *RECIPES, *SCRIPTS]
