"""A complete configuration of a merge, to start from."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.commands import Write

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
