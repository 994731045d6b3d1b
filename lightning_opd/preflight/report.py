"""What a preflight found: one line for each check."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from lightning_opd.errors import CombinedConfigError, ConfigError
from lightning_opd.models import gather_objects

FILE_NAME = "preflight.json"


def in_bytes(size: int) -> str:
    """Return a size in megabytes or gigabytes.

    Example:
        >>> in_bytes(12_345_678), in_bytes(12_345_678_901)
        ('12.35 MB', '12.35 GB')
    """
    return f"{size / 1e9:,.2f} GB" if size >= 1e9 else f"{size / 1e6:,.2f} MB"


class Status(Enum):
    """How a check ended."""

    PASSED = "ok"
    NOTE = "note"
    FAILED = "failed"


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Args:
        name: What it is about.
        text: What was found; of a failed check with the cure.
        status: Whether it passed; a note does not stop a run.
        values: The numbers in it, for `preflight.json`.
    """

    name: str
    text: str
    status: Status = Status.PASSED
    values: Mapping[str, object] = field(default_factory=dict)


class Report:
    """The checks of one preflight in their order."""

    def __init__(self) -> None:
        """Start with none."""
        self.checks: list[Check] = []

    def add(self, *checks: Check) -> None:
        """Add checks; what is said already is not said again."""
        for check in checks:
            if all(check.text != other.text or check.name != other.name for other in self.checks):
                self.checks.append(check)

    def run(self, name: str, function: Callable[[], Check | Iterable[Check]]) -> None:
        """Add what a function finds; a settings error that it raises is a failed check of this name."""
        try:
            found = function()
            for check in [found] if isinstance(found, Check) else found:
                self.add(check)
        except ConfigError as error:
            self.fail(name, error)

    def fail(self, name: str, error: ConfigError) -> None:
        """Add a failed check for each problem that an error tells of, unless it is there under another name."""
        known = {check.text for check in self.failed}
        texts = error.problems if isinstance(error, CombinedConfigError) else (str(error),)
        self.add(*(Check(name, text, Status.FAILED) for text in texts if text not in known))

    @property
    def failed(self) -> list[Check]:
        """The checks that failed."""
        return [check for check in self.checks if check.status is Status.FAILED]

    def gather_failed(self) -> None:
        """Add what failed on other ranks, such as a folder that only they cannot write; all ranks must call it."""
        for rank, checks in enumerate(gather_objects(self.failed)):
            known = {check.text for check in self.failed}
            self.add(*(Check(f"{c.name} (process {rank})", c.text, c.status) for c in checks if c.text not in known))

    def write(self, folder: Path) -> Path:
        """Write `preflight.json` into a folder and return its path."""
        folder.mkdir(parents=True, exist_ok=True)
        checks = [
            {"name": check.name, "status": check.status.value, "text": check.text, "values": _plain(check.values)}
            for check in self.checks
        ]
        content = {"passed": not self.failed, "checks": checks}
        path = folder / FILE_NAME
        path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        return path


def _plain(value: object) -> object:
    """Return a value as JSON has it, in which a number that is not finite is a text."""
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
