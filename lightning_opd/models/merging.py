"""Merges models by arithmetic on their weights: averages and task arithmetic, the baselines of distillation."""

from __future__ import annotations

import functools
import json
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from lightning_opd.errors import ConfigError
from lightning_opd.models.files import check_weight_files

_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"


def average(models: Sequence[Tensor]) -> Tensor:
    """Return the mean of the models' tensors, in float32 or wider.

    Args:
        models: The same tensor of each model.

    Example:
        >>> average([torch.tensor([2.0]), torch.tensor([4.0])])
        tensor([3.])
    """
    total = torch.zeros_like(models[0], dtype=_at_least_float32(models))
    for model in models:
        total += model
    return total / len(models)


def task_arithmetic(base: Tensor, models: Sequence[Tensor], coefficient: float) -> Tensor:
    """Return base + coefficient × Σ (model − base), in float32 or wider.

    Args:
        base: Tensor of the common ancestor.
        models: The same tensor of each model.
        coefficient: Scale of the summed differences.

    Example:
        >>> task_arithmetic(torch.tensor([1.0]), [torch.tensor([2.0]), torch.tensor([4.0])], 0.5)
        tensor([3.])

    Reference:
        Ilharco et al. 2023, Editing Models with Task Arithmetic.
    """
    origin = base.to(_at_least_float32([base, *models]))
    total = torch.zeros_like(origin)
    for model in models:
        total += model.to(origin.dtype) - origin
    return origin + coefficient * total


def merge_tensor(base: Tensor, models: Sequence[Tensor], coefficient: float | None) -> Tensor:
    """Return the merged tensor in the base's dtype; integers and booleans are those of the base.

    Args:
        base: Tensor of the common ancestor.
        models: The same tensor of each model.
        coefficient: Scale of the summed differences (task arithmetic); None averages the models.
    """
    if not base.is_floating_point():
        return base
    merged = average(models) if coefficient is None else task_arithmetic(base, models, coefficient)
    return merged.to(base.dtype)


def merge_folders(base: Path, models: Sequence[Path], output: Path, coefficient: float | None) -> None:
    """Merge models that lie in Hugging Face folders and write the result as another one.

    Everything but the weights (configuration, tokenizer) is copied from the base.

    Args:
        base: Folder of the common ancestor.
        models: Folders of the models to merge.
        output: Folder to write.
        coefficient: Scale of the summed differences (task arithmetic); None averages the models.

    Raises:
        ConfigError: If a folder holds no safetensors, the architectures differ, or `output` is one of the models.
    """
    if coefficient is not None and not math.isfinite(coefficient):
        msg = f"`coefficient` must be a finite number, got {coefficient}. Leave it out for the plain average."
        raise ConfigError(msg)
    if not models:
        msg = "`models` must name at least one folder, got an empty list."
        raise ConfigError(msg)
    folders = [base, *models]
    layouts = [_layout(folder) for folder in folders]
    for folder, layout in zip(models, layouts[1:], strict=True):
        _check_same_names(base, layouts[0], folder, layout)
    if any(output.resolve() == folder.resolve() for folder in folders):
        msg = f"`output` must be a new folder, got `{output}`, which is one of the models."
        raise ConfigError(msg)
    output.mkdir(parents=True, exist_ok=True)
    for file in base.iterdir():
        if file.is_file() and file.suffix not in {".safetensors", ".bin", ".pt"}:
            shutil.copy2(file, output / file.name)
    for shard in sorted(set(layouts[0].values())):  # no more than one file is in memory
        merged = dict(_merged_tensors(folders, layouts, shard, coefficient))
        save_file(merged, output / shard, metadata={"format": "pt"})


def _at_least_float32(tensors: Sequence[Tensor]) -> torch.dtype:
    return functools.reduce(torch.promote_types, (tensor.dtype for tensor in tensors), torch.float32)


def _layout(folder: Path) -> Mapping[str, str]:
    """Return tensor name → file that holds it."""
    index, single = folder / _INDEX, folder / _WEIGHTS
    if index.is_file() or single.is_file():
        check_weight_files(folder)
    if index.is_file():
        return dict(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
    if single.is_file():
        with safe_open(single, framework="pt") as file:
            return dict.fromkeys(file.keys(), _WEIGHTS)
    adapter = (
        " It holds a LoRA adapter: merge it first with `export`." if (folder / "adapter_config.json").is_file() else ""
    )
    msg = f"no `{_WEIGHTS}` in `{folder}`; expected a Hugging Face folder with safetensors.{adapter}"
    raise ConfigError(msg)


def _check_same_names(base: Path, expected: Mapping[str, str], folder: Path, got: Mapping[str, str]) -> None:
    missing, extra = sorted(expected.keys() - got.keys()), sorted(got.keys() - expected.keys())
    if missing or extra:
        parts = [f"lacks {len(missing)} tensors such as `{missing[0]}`"] if missing else []
        parts += [f"has {len(extra)} more such as `{extra[0]}`"] if extra else []
        msg = (
            f"`{folder}` {' and '.join(parts)} compared with the base `{base}`; "
            "only models of one architecture can be averaged."
        )
        raise ConfigError(msg)


def _merged_tensors(
    folders: Sequence[Path], layouts: Sequence[Mapping[str, str]], shard: str, coefficient: float | None
) -> Iterator[tuple[str, Tensor]]:
    """Yield the name and the merged tensor of everything that a file of the base holds."""
    names = sorted(name for name, file in layouts[0].items() if file == shard)
    streams = [_read(folder, layout, names) for folder, layout in zip(folders, layouts, strict=True)]
    for name, base, *models in zip(names, *streams, strict=True):
        for folder, model in zip(folders[1:], models, strict=True):
            if model.shape != base.shape:
                msg = (
                    f"`{name}` is {list(model.shape)} in `{folder}` and {list(base.shape)} in the base "
                    f"`{folders[0]}`; only models of one architecture can be averaged."
                )
                raise ConfigError(msg)
        yield name, merge_tensor(base, models, coefficient).contiguous()


def _read(folder: Path, layout: Mapping[str, str], names: Sequence[str]) -> Iterator[Tensor]:
    for name in names:
        with safe_open(folder / layout[name], framework="pt") as file:
            yield file.get_tensor(name)
