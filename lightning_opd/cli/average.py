"""The command `average`: weight averaging and task arithmetic, the baselines of merging."""

from __future__ import annotations

import sys
from pathlib import Path

from lightning_opd.options.outputs import check_output


def average(base: str, models: list[str], output: str, coefficient: float | None = None) -> None:
    """Merge models by arithmetic on their weights.

    Writes the plain average of the models, or with a coefficient task arithmetic: base + coefficient × Σ (model −
    base). All are Hugging Face folders with safetensors of the same architecture. Computed in float32, saved in the
    base's dtype. LoRA adapters of one base become one adapter, exactly, whose rank is the sum of theirs.

    Args:
        base: Folder of the model that the others started from; its tokenizer and configuration are copied.
        models: Folders of the models to merge: whole models, or adapters all of them.
        output: Folder to write.
        coefficient: Scale of the summed differences; leave it out for the plain average.
    """
    from lightning_opd.models.adapters import CONFIG_FILE
    from lightning_opd.models.merging import merge_folders
    from lightning_opd.models.merging_adapters import merge_adapters

    check_output(Path(output), "output")
    folders = [Path(model) for model in models]
    if folders and all((folder / CONFIG_FILE).is_file() for folder in folders):
        merge_adapters(base, folders, Path(output), coefficient)
    else:
        merge_folders(Path(base), folders, Path(output), coefficient)
    rule = "plain average" if coefficient is None else f"task arithmetic, coefficient {coefficient:g}"
    sys.stdout.write(f"{rule} of {len(models)} models written to {output}\n")
