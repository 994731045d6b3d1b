"""The commands of this folder's README: each is one that its script takes."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from tests.benchmarks import cuda, floor, merge_step, scaling, step

PARSERS = {
    "step": step.parser,
    "floor": floor.parser,
    "scaling": scaling.parser,
    "merge_step": merge_step.parser,
    "cuda": cuda.parser,
}
PATTERN = re.compile(rf"`python -m tests\.benchmarks\.({'|'.join(PARSERS)}) ([^`]*)`")
COMMANDS = PATTERN.findall(Path(__file__).with_name("README.md").read_text(encoding="utf-8"))


@pytest.mark.parametrize(("script", "words"), COMMANDS, ids=lambda text: text.replace("/", " "))
def test_a_command_of_the_readme_is_taken(script: str, words: str) -> None:
    PARSERS[script]().parse_args(shlex.split(words))


def test_every_script_has_a_command_in_the_readme() -> None:
    assert {script for script, _ in COMMANDS} == PARSERS.keys()
