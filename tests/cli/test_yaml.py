"""Every YAML that is shipped parses, and its first line is the command that runs it."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from lightning_opd.cli.recipe.spec import read_recipe
from tests.commands import Cli

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "recipes").glob("*/recipe.yaml"))
YAMLS = sorted({*(ROOT / "recipes").rglob("*.yaml"), *(ROOT / "configs").rglob("*.yaml")} - set(RECIPES))


def command(path: Path) -> list[str]:
    """Return the words after `python -m lightning_opd` in the first line of a YAML."""
    first = path.read_text(encoding="utf-8").splitlines()[0]
    assert first.startswith("# python -m lightning_opd "), f"{path} starts with {first!r}"
    return shlex.split(first.removeprefix("# python -m lightning_opd "))


@pytest.mark.parametrize("path", YAMLS, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_first_line_runs_the_file_and_parses(cli: Cli, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    words = command(path)
    assert str(path.relative_to(ROOT)) in words
    code, out, err = cli(*words, "--print_config")
    assert code == 0, err
    assert out


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.parent.name)
def test_every_recipe_reads_and_all_its_steps_parse(cli: Cli, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert command(path) == ["run", str(path.parent.relative_to(ROOT))]
    for step in read_recipe(path.parent).steps:
        words = [
            step.command,
            *(word for config in step.configs(path.parent) for word in ("--config", config)),
            *step.overrides,
        ]
        code, _, err = cli(*words, "--print_config")
        assert code == 0, f"{step.name}: {err}"
