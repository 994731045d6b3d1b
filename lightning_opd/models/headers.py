"""What the headers of a model's safetensors say: name, shape and precision of every tensor, without reading any."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open

from lightning_opd.errors import MissingFileError
from lightning_opd.models.files import INDEX, WEIGHTS
from lightning_opd.models.hub import locate

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""Precisions of weights by safetensors' name."""


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies.

    Args:
        file: A safetensors file.
        name: In that file.
        shape: As stored.
        dtype: None for other numbers than those of weights, such as integers.
    """

    file: Path
    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype | None

    @property
    def numel(self) -> int:
        """How many numbers it has."""
        return math.prod(self.shape)


def model_folder(path: str, revision: str | None = None) -> Path:
    """Return the folder of a model's files; those of a model on the hub are downloaded, where they are not yet.

    Args:
        path: Folder or hub name.
        revision: Branch, tag or commit on the hub.

    Raises:
        FileNotFoundError: There is no model.
    """
    options = locate(path, "a model", revision)
    if Path(path).is_dir():
        return Path(path)
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(path, allow_patterns=["*.json", "*.safetensors"], **options))


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Return every tensor of a model by its name, from the headers alone; empty without safetensors.

    Raises:
        FileNotFoundError: The index names a file that is not there.
    """
    index = folder / INDEX
    if (folder / WEIGHTS).is_file():
        files = [folder / WEIGHTS]
    elif index.is_file():
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        files = [folder / name for name in sorted(set(weight_map.values()))]
    else:
        files = sorted(folder.glob("*.safetensors"))
    found: dict[str, StoredTensor] = {}
    for file in files:
        if not file.is_file():
            msg = f"`{folder}` lacks `{file.name}`, which its index names. Copy it, too."
            raise MissingFileError(msg)
        with safe_open(file, framework="pt") as content:
            for name in content.keys():  # noqa: SIM118  # no mapping
                part = content.get_slice(name)
                found[name] = StoredTensor(file, name, tuple(part.get_shape()), DTYPES.get(part.get_dtype()))
    return found
