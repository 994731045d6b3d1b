"""Merges the folders of several models into one, tensor by tensor."""

from __future__ import annotations

import json
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from typing_extensions import override

from lightning_opd.errors import ConfigError
from lightning_opd.models.files import check_weight_files, written_whole
from lightning_opd.models.merging_methods import MergeGroup, TensorGroup, WeightMerge

_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"


class WeightSource(ABC):
    """A model whose tensors are read one at a time.

    Args:
        path: Its folder.
    """

    def __init__(self, path: Path) -> None:
        """Remember the folder."""
        self.path = path

    @abstractmethod
    def check(self, base: FolderWeights) -> None:
        """Refuse a model that has other tensors than the base.

        Raises:
            ConfigError: With the first names.
        """

    @abstractmethod
    def read(self, name: str, base: Tensor) -> Tensor | None:
        """Return the model's tensor of a name; None where it is the base's own.

        Args:
            name: As the base calls it.
            base: The base's.
        """


class FolderWeights(WeightSource):
    """A whole model in a Hugging Face folder with safetensors."""

    def __init__(self, path: Path) -> None:
        """Read which file holds which tensor."""
        super().__init__(path)
        self.layout: Mapping[str, str] = _layout(path)

    @override
    def check(self, base: FolderWeights) -> None:
        missing, extra = (
            sorted(base.layout.keys() - self.layout.keys()),
            sorted(self.layout.keys() - base.layout.keys()),
        )
        if missing or extra:
            parts = [f"lacks {len(missing)} tensors such as `{missing[0]}`"] if missing else []
            parts += [f"has {len(extra)} more such as `{extra[0]}`"] if extra else []
            msg = (
                f"`{self.path}` {' and '.join(parts)} compared with the base `{base.path}`; "
                "only models of one architecture can be averaged."
            )
            raise ConfigError(msg)

    def load(self, name: str) -> Tensor:
        """Return a tensor."""
        with safe_open(self.path / self.layout[name], framework="pt") as file:
            tensor: Tensor = file.get_tensor(name)
        return tensor

    @override
    def read(self, name: str, base: Tensor) -> Tensor:
        model = self.load(name)
        if model.shape != base.shape:
            msg = (
                f"`{name}` is {list(model.shape)} in `{self.path}` and {list(base.shape)} in the base; only models of "
                "one architecture can be averaged."
            )
            raise ConfigError(msg)
        return model


def merge_folders(base: Path, models: Sequence[Path], output: Path, method: WeightMerge) -> None:
    """Merge models that lie in Hugging Face folders and write the result as another one.

    Args:
        base: Folder of the common ancestor.
        models: Folders of the models to merge.
        output: Folder to write.
        method: The rule.

    Raises:
        ConfigError: If a folder holds no safetensors, the architectures differ, or `output` is one of the models.
    """
    if not models:
        msg = "`models` must name at least one folder, got an empty list."
        raise ConfigError(msg)
    ancestor = FolderWeights(base)
    write_merged(ancestor, [FolderWeights(path) for path in models], output, method)


def write_merged(base: FolderWeights, models: Sequence[WeightSource], output: Path, method: WeightMerge) -> None:
    """Merge models and write the result; no more than one file of the base is in memory.

    Everything but the weights (configuration, tokenizer) is copied from the base. The arithmetic is done in float32
    or wider; the result has the base's dtype, and integers and booleans are those of the base.

    Raises:
        ConfigError: If the architectures differ, or `output` is one of the models.
    """
    for model in models:
        model.check(base)
    if any(output.resolve() == source.path.resolve() for source in [base, *models]):
        msg = f"`output` must be a new folder, got `{output}`, which is one of the models."
        raise ConfigError(msg)
    shards = sorted(set(base.layout.values()))

    def groups() -> Iterator[TensorGroup]:
        for shard in shards:
            yield from (group for group in _groups(base, models, shard) if group.base.is_floating_point())

    merge = method.plan(groups)
    with written_whole(output) as folder:
        for file in base.path.iterdir():
            if file.is_file() and file.suffix not in {".safetensors", ".bin", ".pt"}:
                shutil.copy2(file, folder / file.name)
        for shard in shards:
            merged = {group.name: merge_tensor(group, merge).contiguous() for group in _groups(base, models, shard)}
            save_file(merged, folder / shard, metadata={"format": "pt"})


def merge_tensor(group: TensorGroup, merge: MergeGroup) -> Tensor:
    """Return the merged tensor in the base's dtype; integers and booleans are those of the base."""
    return merge(group).to(group.base.dtype) if group.base.is_floating_point() else group.base


def _groups(base: FolderWeights, models: Sequence[WeightSource], shard: str) -> Iterator[TensorGroup]:
    """Yield everything that a file of the base holds."""
    for name in sorted(name for name, file in base.layout.items() if file == shard):
        own = base.load(name)
        yield TensorGroup(name, own, [model.read(name, own) for model in models])


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
