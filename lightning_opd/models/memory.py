"""How much memory there is for a model, and how many weights one has before it is loaded."""

from __future__ import annotations

import os

import torch

from lightning_opd.models.loading import load_config
from lightning_opd.models.sizes import num_weights
from lightning_opd.models.slices import model_outline


def declared_weights(path: str, *, revision: str | None = None, trust_remote_code: bool = False) -> int:
    """Return how many weights a model has, from its configuration alone; tied ones count once.

    Args:
        path: Folder or hub name; of an adapter's folder its base counts.
        revision: Branch, tag or commit on the hub.
        trust_remote_code: Run code shipped with the model.

    Raises:
        FileNotFoundError: There is no model.
    """
    config = load_config(path, revision=revision, trust_remote_code=trust_remote_code)
    return num_weights(model_outline(config, trust_remote_code=trust_remote_code))


def available_bytes() -> int:
    """Return the memory that a model can use now: that of the first GPU, or the machine's without one."""
    if torch.cuda.is_available():
        free, _ = torch.cuda.mem_get_info(0)
        return int(free)
    return int(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES"))
