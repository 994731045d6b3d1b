"""Folders that a command is to write into: checked before it does anything else."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from lightning_opd.errors import ConfigError


def check_output(folder: Path, key: str) -> None:
    """Refuse a folder that cannot be made or written; nothing stays behind. Remote paths are left alone.

    Args:
        folder: The folder to write.
        key: The setting that names it.

    Raises:
        ConfigError: A file is in its way, or nothing can be written there.
    """
    if "://" in str(folder):
        return
    place = nearest(folder)
    if not place.is_dir():
        msg = f"`{key}` is `{folder}`, but `{place}` is a file, not a folder. Choose another folder, or move the file."
        raise ConfigError(msg)
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        msg = (
            f"`{key}` is `{folder}`, but nothing can be written in `{place}` ({error.strerror or error}). Choose "
            "another folder, or change its rights."
        )
        raise ConfigError(msg) from error


def nearest(folder: Path) -> Path:
    """Return the folder itself, or the nearest one above it that exists."""
    return next((path for path in (folder, *folder.absolute().parents) if os.path.lexists(path)), Path("/"))
