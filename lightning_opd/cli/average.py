"""The verb `average`: weight averaging and task arithmetic, the baselines of merging."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_opd.cli.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torch import Tensor

_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"


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
    if not models:
        msg = "`models` must name at least one folder, got an empty list."
        raise UsageError(msg)
    folders = [Path(base), *(Path(model) for model in models)]
    layouts = [_layout(folder) for folder in folders]
    for folder, layout in zip(folders[1:], layouts[1:], strict=True):
        _check_same_keys(folders[0], layouts[0], folder, layout)
    target = Path(output)
    if any(target.resolve() == folder.resolve() for folder in folders):
        msg = f"`output` must be a new folder, got `{output}`, which is one of the models."
        raise UsageError(msg)
    target.mkdir(parents=True, exist_ok=True)
    for file in folders[0].iterdir():
        if file.is_file() and file.suffix not in {".safetensors", ".bin", ".pt"}:
            shutil.copy2(file, target / file.name)
    _write_merged(folders, layouts, target, coefficient)
    rule = "plain average" if coefficient is None else f"task arithmetic, coefficient {coefficient:g}"
    sys.stdout.write(f"{rule} of {len(models)} models written to {target}\n")


def merge(base: Tensor, models: Sequence[Tensor], coefficient: float | None) -> Tensor:
    """Return the merged tensor in the base's dtype.

    Args:
        base: Tensor of the common ancestor.
        models: The same tensor of each model.
        coefficient: Scale of the summed differences; None averages the models.

    Example:
        >>> import torch
        >>> merge(torch.tensor([1.0]), [torch.tensor([2.0]), torch.tensor([4.0])], None)
        tensor([3.])
        >>> merge(torch.tensor([1.0]), [torch.tensor([2.0]), torch.tensor([4.0])], 0.5)
        tensor([3.])
    """
    import torch

    if not base.is_floating_point():
        return base
    dtype = torch.promote_types(base.dtype, torch.float32)
    stacked = torch.stack([model.to(dtype) for model in models])
    merged = stacked.mean(dim=0) if coefficient is None else base + coefficient * (stacked - base.to(dtype)).sum(dim=0)
    return merged.to(base.dtype)


def _layout(folder: Path) -> Mapping[str, str]:
    """Return tensor name → file that holds it."""
    from safetensors import safe_open

    index, single = folder / _INDEX, folder / _WEIGHTS
    if index.is_file():
        return dict(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
    if single.is_file():
        with safe_open(single, framework="pt") as file:
            return dict.fromkeys(file.keys(), _WEIGHTS)
    adapter = (
        " It holds a LoRA adapter: merge it first with `export`." if (folder / "adapter_config.json").is_file() else ""
    )
    msg = f"no `{_WEIGHTS}` in `{folder}`; expected a Hugging Face folder with safetensors.{adapter}"
    raise UsageError(msg)


def _check_same_keys(base: Path, expected: Mapping[str, str], folder: Path, got: Mapping[str, str]) -> None:
    missing, extra = sorted(expected.keys() - got.keys()), sorted(got.keys() - expected.keys())
    if missing or extra:
        parts = [f"lacks {len(missing)} tensors such as `{missing[0]}`"] if missing else []
        parts += [f"has {len(extra)} more such as `{extra[0]}`"] if extra else []
        msg = (
            f"`{folder}` {' and '.join(parts)} compared with the base `{base}`; "
            "only models of one architecture can be averaged."
        )
        raise UsageError(msg)


def _read(folder: Path, layout: Mapping[str, str], names: Sequence[str]) -> Iterator[Tensor]:
    from safetensors import safe_open

    for name in names:
        with safe_open(folder / layout[name], framework="pt") as file:
            yield file.get_tensor(name)


def _write_merged(
    folders: Sequence[Path], layouts: Sequence[Mapping[str, str]], target: Path, coefficient: float | None
) -> None:
    """Write file by file in the base's layout, so that no more than one file is in memory."""
    from safetensors.torch import save_file

    for shard in sorted(set(layouts[0].values())):
        names = sorted(name for name, file in layouts[0].items() if file == shard)
        merged: dict[str, Tensor] = {}
        streams = [_read(folder, layout, names) for folder, layout in zip(folders, layouts, strict=True)]
        for name, base, *models in zip(names, *streams, strict=True):
            for folder, model in zip(folders[1:], models, strict=True):
                if model.shape != base.shape:
                    msg = (
                        f"`{name}` is {list(model.shape)} in `{folder}` and {list(base.shape)} in the base "
                        f"`{folders[0]}`; only models of one architecture can be averaged."
                    )
                    raise UsageError(msg)
            merged[name] = merge(base, models, coefficient).contiguous()
        save_file(merged, target / shard, metadata={"format": "pt"})
