"""Every YAML that is shipped parses, and its first line is the command that runs it."""

from __future__ import annotations

import contextlib
import functools
import io
import re
import shlex
from pathlib import Path

import pytest

from lightning_opd.cli.main import main
from lightning_opd.workflow.recipe import read_recipe

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "recipes").glob("*/recipe.yaml"))
YAMLS = sorted({*(ROOT / "recipes").rglob("*.yaml"), *(ROOT / "configs").rglob("*.yaml")} - set(RECIPES))


def command(path: Path) -> list[str]:
    """Return the words after `python -m lightning_opd` in the first line of a YAML."""
    first = path.read_text(encoding="utf-8").splitlines()[0]
    assert first.startswith("# python -m lightning_opd "), f"{path} starts with {first!r}"
    return shlex.split(first.removeprefix("# python -m lightning_opd "))


@functools.cache
def parse(*words: str) -> tuple[int | str | None, str]:
    """Return exit code and all output of a command that only shows what it would run with; words are parsed once."""
    printed = io.StringIO()
    with contextlib.chdir(ROOT), contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        try:
            code: int | str | None = main([*words, "--print_config"])
        except SystemExit as stop:
            code = stop.code
    return code, printed.getvalue()


@pytest.mark.parametrize("path", YAMLS, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_first_line_runs_the_file_and_parses(path: Path) -> None:
    words = command(path)
    assert str(path.relative_to(ROOT)) in words
    code, printed = parse(*words)
    assert code == 0, printed
    assert printed


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.parent.name)
def test_every_recipe_reads_and_all_its_steps_parse(path: Path) -> None:
    assert command(path) == ["run", str(path.parent.relative_to(ROOT))]
    for step in read_recipe(path.parent).steps:
        files = [str(config.resolve().relative_to(ROOT)) for config in step.configs(path.parent)]
        configs = [word for file in files for word in ("--config", file)]
        overrides = [re.sub(r"\$\{run\}/\w+", "${run}/step", override) for override in step.overrides]  # parses alike
        code, printed = parse(step.command, *configs, *overrides)
        assert code == 0, f"{step.name}: {printed}"
