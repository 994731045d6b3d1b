"""How large a model is before it is loaded, and how much memory there is for it."""

from __future__ import annotations

import math
import os
from pathlib import Path

import torch
from safetensors import safe_open

from lightning_opd.errors import MissingFileError


def num_weights(path: str) -> int:
    """Return how many weights a model has, from the headers of its safetensors; tied ones count once.

    Args:
        path: Folder or hub name; of a hub name only what is in its cache already counts.

    Raises:
        FileNotFoundError: There is no model.
    """
    folder = Path(path)
    if not folder.is_dir():
        from transformers.utils.hub import cached_file

        found = cached_file(path, "config.json")
        folder = Path(str(found)).parent
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        msg = f"Expected a model in safetensors in `{path}`, found none. Save it with `save_pretrained`."
        raise MissingFileError(msg)
    total = 0
    for file in files:
        with safe_open(file, framework="pt") as content:
            total += sum(math.prod(content.get_slice(name).get_shape()) for name in content.keys())  # noqa: SIM118
    return total


def available_bytes() -> int:
    """Return the memory that a model can use now: that of the first GPU, or the machine's without one."""
    if torch.cuda.is_available():
        free, _ = torch.cuda.mem_get_info(0)
        return int(free)
    return int(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES"))
