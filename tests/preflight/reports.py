"""What a preflight left in a folder, and the types of the fixtures that run one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

Run: TypeAlias = Callable[..., tuple[int, str, str]]
"""Called with the command and words after it; returns exit status, stdout and stderr."""
Spoil: TypeAlias = Callable[[str, Callable[[Any], object]], Path]
"""Called with a name of `world` and what is done to its model; returns a folder with the result."""


def checks(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the checks of a folder's `preflight.json` by their names; of several the last."""
    return {check["name"]: check for check in _content(folder)["checks"]}


def failed(folder: Path) -> list[tuple[str, str]]:
    """Return name and text of the checks that failed."""
    content = _content(folder)
    found = [(check["name"], check["text"]) for check in content["checks"] if check["status"] == "failed"]
    assert content["passed"] == (not found)
    return found


def _content(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "preflight.json").read_text(encoding="utf-8"))
    return content
