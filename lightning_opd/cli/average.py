"""The command `average`: weight averaging and task arithmetic, the baselines of merging."""

from __future__ import annotations

import sys
from pathlib import Path


def average(base: str, models: list[str], output: str, coefficient: float | None = None) -> None:
    """Merge models by arithmetic on their weights.

    Writes the plain average of the models, or with a coefficient task arithmetic: base + coefficient × Σ (model −
    base). All are Hugging Face folders with safetensors of the same architecture. Computed in float32, saved in the
    base's dtype.

    Args:
        base: Folder of the model that the others started from; its tokenizer and configuration are copied.
        models: Folders of the models to merge.
        output: Folder to write.
        coefficient: Scale of the summed differences; leave it out for the plain average.
    """
    from lightning_opd.models.merging import merge_folders

    merge_folders(Path(base), [Path(model) for model in models], Path(output), coefficient)
    rule = "plain average" if coefficient is None else f"task arithmetic, coefficient {coefficient:g}"
    sys.stdout.write(f"{rule} of {len(models)} models written to {output}\n")
