"""Runs the command line in the test's own process, and writes configurations for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import pytest
import yaml

from lightning_opd.cli.main import main

Cli: TypeAlias = Callable[..., tuple[int, str, str]]
"""Called with a command and its words; returns exit code, stdout and stderr."""
Write: TypeAlias = Callable[[str, object], Path]
"""Called with a file name and its content; returns the path."""


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    """Run a command line in this process; returns exit code, stdout and stderr."""
    monkeypatch.setattr("sys.argv", ["lightning-opd"])
    monkeypatch.setenv("COLUMNS", "200")

    def run(*words: object) -> tuple[int, str, str]:
        try:
            code = main([str(word) for word in words])
        except SystemExit as stop:
            code = int(stop.code or 0)
        out, err = capsys.readouterr()
        return code, out, err

    return run


@pytest.fixture
def write_yaml(tmp_path: Path) -> Write:
    """Write a YAML file into the test's folder and return its path."""

    def write(name: str, content: object) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content if isinstance(content, str) else yaml.safe_dump(content), encoding="utf-8")
        return path

    return write


MERGE = {
    "model": {"student": {"path": "runs/none"}, "teachers": {"arithmetic": "runs/a", "strings": "runs/s"}},
    "data": {
        "task": {
            "class_path": "lightning_opd.tasks.Mixture",
            "init_args": {
                "tasks": {
                    "arithmetic": {"class_path": "lightning_opd.tasks.Arithmetic"},
                    "strings": {"class_path": "lightning_opd.tasks.Strings"},
                }
            },
        }
    },
}


@pytest.fixture
def merge_yaml(write_yaml: Write) -> Path:
    """A complete `fit` configuration of a merge; its models do not exist."""
    return write_yaml("merge.yaml", MERGE)
