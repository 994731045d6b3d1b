"""Merges LoRA adapters of one base by arithmetic on what they add to it: as one adapter, or as a whole model."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from typing_extensions import override

from lightning_opd.errors import ConfigError, MissingFileError
from lightning_opd.models.adapters import CONFIG_FILE, WEIGHTS_FILE, adapter_base
from lightning_opd.models.files import check_json, check_safetensors, written_whole
from lightning_opd.models.merging import FolderWeights, WeightSource, write_merged
from lightning_opd.models.merging_methods import WeightMerge

EXACT_KINDS = {"use_dora": False, "use_qalora": False, "fan_in_fan_out": False, "lora_bias": False, "bias": "none"}
"""Settings under which an adapter adds scale · B A to a weight and does nothing else."""

PREFIX, A, B = "base_model.model.", ".lora_A.weight", ".lora_B.weight"


@dataclass(frozen=True)
class _Adapter:
    """An adapter's matrices by module, each B multiplied by the adapter's scale."""

    path: Path
    settings: Mapping[str, object]
    down: Mapping[str, Tensor]
    up: Mapping[str, Tensor]


def merge_adapters(base: str, adapters: Sequence[Path], output: Path, coefficient: float | None) -> None:
    """Write the average of adapters, or with a coefficient their scaled sum (task arithmetic), as one adapter.

    coefficient · Σᵢ sᵢ Bᵢ Aᵢ is the product of the stacked Aᵢ and the Bᵢ side by side, each times its scale: nothing
    is lost, and the rank is the sum of the ranks. A module that an adapter leaves alone gets zeros from it.

    Args:
        base: Folder or hub name of the model that all of them belong on.
        adapters: Folders as peft writes them.
        output: Folder to write.
        coefficient: Scale of the sum; None for the average.

    Raises:
        ConfigError: An adapter belongs on another base, does more than add B A, or `output` is one of them.
    """
    if any(output.resolve() == path.resolve() for path in adapters):
        msg = f"`output` must be a new folder, got `{output}`, which is one of the models."
        raise ConfigError(msg)
    read = [_read(base, path) for path in adapters]
    weight = 1 / len(read) if coefficient is None else coefficient
    modules = sorted({module for adapter in read for module in adapter.down})
    ranks = [max(matrix.shape[0] for matrix in adapter.down.values()) for adapter in read]
    tensors = {}
    for module in modules:
        some = next(adapter for adapter in read if module in adapter.down)
        size_in, size_out = some.down[module].shape[1], some.up[module].shape[0]
        down, up = torch.zeros(sum(ranks), size_in), torch.zeros(size_out, sum(ranks))
        start = 0
        for adapter, rank in zip(read, ranks, strict=True):
            if module in adapter.down:
                _check_shape(adapter, module, size_in, size_out, some)
                own = slice(start, start + adapter.down[module].shape[0])
                down[own], up[:, own] = adapter.down[module], weight * adapter.up[module]
            start += rank
        tensors[PREFIX + module + A], tensors[PREFIX + module + B] = down, up
    _write(output, base, read, modules, tensors)


class _OnBase(WeightSource):
    """A base with an adapter folded in, one tensor at a time."""

    def __init__(self, adapter: _Adapter) -> None:
        super().__init__(adapter.path)
        self.adapter = adapter

    @override
    def check(self, base: FolderWeights) -> None:
        missing = sorted(module for module in self.adapter.down if f"{module}.weight" not in base.layout)
        if missing:
            msg = (
                f"The adapter `{self.path}` changes `{missing[0]}`, of which the base `{base.path}` has no weight; it "
                "belongs on another model."
            )
            raise ConfigError(msg)

    @override
    def read(self, name: str, base: Tensor) -> Tensor | None:
        module = name.removesuffix(".weight")
        if module not in self.adapter.down:
            return None
        up, down = self.adapter.up[module], self.adapter.down[module]
        if (up.shape[0], down.shape[1]) != base.shape:
            msg = (
                f"`{module}` is {[up.shape[0], down.shape[1]]} in `{self.path}` and {list(base.shape)} in the base; it "
                "belongs on another model."
            )
            raise ConfigError(msg)
        return base.float() + up @ down


def merge_adapters_whole(base: str, adapters: Sequence[Path], output: Path, method: WeightMerge) -> None:
    """Write the base with what a rule makes of several adapters as a whole model.

    For rules whose result has no low rank: TIES takes single weights of B A and leaves others, and so does DARE. The
    products are made one tensor at a time. Only the tensors that an adapter changes count for it.

    Args:
        base: Folder of the model that all of them belong on.
        adapters: Folders as peft writes them.
        output: Folder to write.
        method: The rule.

    Raises:
        ConfigError: The base is no folder, or an adapter belongs on another one or does more than add B A.
    """
    sources = [_OnBase(_read(base, path)) for path in adapters]
    write_merged(FolderWeights(Path(base)), sources, output, method)


def _read(base: str, path: Path) -> _Adapter:
    settings = check_json(path / CONFIG_FILE)
    own = adapter_base(str(path))
    if own != base and Path(str(own)).resolve() != Path(base).resolve():
        msg = (
            f"The adapter `{path}` belongs on `{own}`, not on the base `{base}`. Name that one as `base`, or correct "
            f"`base_model_name_or_path` in its {CONFIG_FILE}."
        )
        raise ConfigError(msg)
    odd = {key: settings[key] for key, plain in EXACT_KINDS.items() if settings.get(key, plain) not in (plain, None)}
    if settings.get("peft_type") != "LORA" or odd or settings.get("modules_to_save"):
        got = odd or {key: settings.get(key) for key in ("peft_type", "modules_to_save")}
        msg = f"Only plain LoRA adapters can be averaged; `{path}` has {got}. Merge it into its base first (`export`)."
        raise ConfigError(msg)
    file = path / WEIGHTS_FILE
    if not file.is_file():
        msg = f"Expected the adapter's weights at `{file}`, found none. Save them as safetensors."
        raise MissingFileError(msg)
    check_safetensors(file)
    weights = load_file(file)
    odd_names = sorted(key for key in weights if not key.endswith((A, B)))
    if odd_names:
        msg = f"`{file}` has `{odd_names[0]}`, which is no LoRA matrix of a linear layer; it cannot be averaged."
        raise ConfigError(msg)
    down = {
        key.removeprefix(PREFIX).removesuffix(A): value.float() for key, value in weights.items() if key.endswith(A)
    }
    up = {
        module: value.float() * _scale(settings, module, down[module].shape[0])
        for key, value in weights.items()
        if key.endswith(B) and (module := key.removeprefix(PREFIX).removesuffix(B))
    }
    return _Adapter(path, settings, down, up)


def _scale(settings: Mapping[str, object], module: str, rank: int) -> float:
    """Return what peft multiplies B A by in a module."""
    alpha, pattern = settings["lora_alpha"], settings.get("alpha_pattern")
    for key, value in (pattern if isinstance(pattern, dict) else {}).items():
        if re.match(rf"(.*\.)?({key})$", module):  # as peft reads it
            alpha = value
            break
    assert isinstance(alpha, (int, float))
    return alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank)


def _check_shape(adapter: _Adapter, module: str, size_in: int, size_out: int, other: _Adapter) -> None:
    got = adapter.up[module].shape[0], adapter.down[module].shape[1]
    if got != (size_out, size_in):
        msg = (
            f"`{module}` is {[*got]} in `{adapter.path}` and {[size_out, size_in]} in `{other.path}`; only adapters of "
            "one base can be averaged."
        )
        raise ConfigError(msg)


def _write(
    output: Path, base: str, read: Sequence[_Adapter], modules: Sequence[str], tensors: Mapping[str, Tensor]
) -> None:
    first = read[0]
    rank = next(iter(tensors.values())).shape[0]
    targets = [adapter.settings.get("target_modules") for adapter in read]
    same = all(set(adapter.down) == set(modules) for adapter in read) and all(x == targets[0] for x in targets)
    settings = {
        **first.settings,
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": rank,
        "use_rslora": False,
        "rank_pattern": {},
        "alpha_pattern": {},
        "target_modules": targets[0] if same else list(modules),
        "exclude_modules": first.settings.get("exclude_modules") if same else None,
    }
    dtype = next(iter(load_file(first.path / WEIGHTS_FILE).values())).dtype
    contents = {name: tensor.to(dtype).contiguous() for name, tensor in tensors.items()}
    with written_whole(output) as folder:
        for file in first.path.iterdir():
            if file.is_file() and file.suffix in {".json", ".jinja", ".model", ".txt"} and file.name != CONFIG_FILE:
                shutil.copy2(file, folder / file.name)
        (folder / CONFIG_FILE).write_text(json.dumps(settings, indent=2), encoding="utf-8")
        save_file(contents, folder / WEIGHTS_FILE, metadata={"format": "pt"})
