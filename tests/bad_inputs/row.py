"""One wrong input and what its message must say."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

ROWS = [{"prompt": f"question {i}", "teacher": ("math", "code")[i % 2], "answer": "1"} for i in range(40)]

Prepare: TypeAlias = Callable[[Path, Path], None]
"""Called with the folder of good models and with the case's own folder."""


@dataclass(frozen=True)
class Bad:
    """A good run of two teachers over a JSONL file with one thing wrong; `HERE` and `WORLD` stand for its folders.

    Args:
        name: What is wrong.
        says: All that the message must hold.
        words: After `fit --config HERE/good.yaml`.
        yaml: A second config file, `HERE/wrong.yaml`.
        rows: Content of the prompts' file.
        prepare: Makes what else is wrong.
        command: The words of another command, instead of `fit`.
        is_slow: Whether others of its kind suffice for the default suite.
    """

    name: str
    says: tuple[str, ...]
    words: tuple[str, ...] = ()
    yaml: str | bytes | None = None
    rows: str | bytes | None = None
    prepare: Prepare | None = None
    command: tuple[str, ...] | None = None
    is_slow: bool = False

    def arguments(self, world: Path, folder: Path) -> list[str]:
        """Write the files and return the command line."""
        rows = self.rows if self.rows is not None else "".join(json.dumps(row) + "\n" for row in ROWS)
        (folder / "prompts.jsonl").write_bytes(rows.encode() if isinstance(rows, str) else rows)
        (folder / "good.yaml").write_text(json.dumps(good_config(world, folder)))
        words = ["fit", "--config", f"{folder}/good.yaml"]
        if self.yaml is not None:
            text = filled(self.yaml, world, folder).encode() if isinstance(self.yaml, str) else self.yaml
            (folder / "wrong.yaml").write_bytes(text)
            words += ["--config", f"{folder}/wrong.yaml"]
        if self.prepare is not None:
            self.prepare(world, folder)
        words = words if self.command is None else list(self.command)
        return [filled(word, world, folder) for word in [*words, *self.words]]


def good_config(world: Path, folder: Path) -> dict[str, Any]:
    """Return the configuration of a small run that works."""
    return {
        "model": {
            "student": {"path": str(world / "student")},
            "teachers": {name: str(world / name) for name in ("math", "code")},
            "optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.01}},
        },
        "data": {
            "task": {
                "class_path": "lightning_opd.tasks.Jsonl",
                "init_args": {"path": str(folder / "prompts.jsonl")},
            },
            "prompts_per_batch": 4,
            "sampling": {"max_new_tokens": 4},
        },
        "trainer": {
            "max_steps": 1,
            "accelerator": "cpu",
            "devices": 1,
            "logger": False,
            "limit_val_batches": 0,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "default_root_dir": str(folder / "out"),
        },
    }


def setting(word: str, *says: str, more: tuple[str, ...] = ()) -> Bad:
    """Return the case of one wrong option of `fit`."""
    return Bad(word, says, (*more, f"--{word}"))


def part(class_path: str, **init_args: object) -> str:
    """Return a class with its arguments as one word."""
    return json.dumps({"class_path": class_path, "init_args": init_args})


def thinned(rows: list[Bad], every: int) -> list[Bad]:
    """Return the rows of which the default suite runs every so-manieth: each costs the building of a parser."""
    return [dataclasses.replace(row, is_slow=index % every > 0) for index, row in enumerate(rows)]


def contents(folder: Path) -> dict[Path, bytes]:
    """Return the content of all files below a folder."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def filled(text: str, world: Path, folder: Path) -> str:
    """Return a text with the folders that `WORLD` and `HERE` stand for."""
    return text.replace("WORLD", str(world)).replace("HERE", str(folder))
