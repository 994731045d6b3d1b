"""Folders that a command is to write into: checked before it does anything else."""

from __future__ import annotations

import os
from pathlib import Path

from lightning_opd.errors import ConfigError


def check_output(folder: Path, key: str) -> None:
    """Refuse a folder that cannot be made or written; nothing is made yet. Remote paths are left alone.

    Args:
        folder: The folder to write.
        key: The setting that names it.

    Raises:
        ConfigError: A file is in its way, or its place is read-only.
    """
    if "://" in str(folder):
        return
    place = next((path for path in [folder, *folder.parents] if os.path.lexists(path)), Path())
    if not place.is_dir():
        msg = f"`{key}` is `{folder}`, but `{place}` is a file, not a folder. Choose another folder, or move the file."
        raise ConfigError(msg)
    if not os.access(place, os.W_OK | os.X_OK):
        msg = f"`{key}` is `{folder}`, but `{place}` cannot be written. Choose another folder, or change its rights."
        raise ConfigError(msg)
