"""Weights read from safetensors slice by slice into the shards of each rank, so that none holds a whole model."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from safetensors import safe_open
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset  # torch has no public name for it

from lightning_opd.errors import ConfigError
from lightning_opd.models.adapters import adapter_base
from lightning_opd.models.checks import check_causal, check_weights
from lightning_opd.models.files import check_model
from lightning_opd.models.headers import StoredTensor, model_folder, stored_tensors
from lightning_opd.models.hub import locate
from lightning_opd.models.loading import (
    checkpoint_dtype,
    explain_attention,
    load_causal_lm,
    load_config,
    quiet_files,
    torch_dtype,
)
from lightning_opd.models.sharding import root_unsharded, shard

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from transformers import PretrainedConfig, PreTrainedModel

T = TypeVar("T", bound=nn.Module)

BASE_LAYER = ".base_layer."
"""What peft puts into the name of a weight that an adapter lies on."""


@dataclass(frozen=True)
class LoadSettings:
    """What `load_causal_lm` is told.

    Args:
        path: Folder or hub name.
        revision: Branch, tag or commit on the hub.
        dtype: Precision of the weights; None for the checkpoint's.
        attn_implementation: Attention of transformers; None for the architecture's.
        trust_remote_code: Run code shipped with the model.
        quantization: `nf4` or `int8` for weights in 4 or 8 bits; None for whole ones.
    """

    path: str
    revision: str | None = None
    dtype: str | None = None
    attn_implementation: str | None = None
    trust_remote_code: bool = False
    quantization: str | None = None

    def load(self) -> PreTrainedModel:
        """Load the whole model."""
        return load_causal_lm(
            self.path,
            revision=self.revision,
            dtype=self.dtype,
            attn_implementation=self.attn_implementation,
            trust_remote_code=self.trust_remote_code,
            quantization=self.quantization,
        )


class Slice(Protocol):
    """A tensor in a safetensors file of which parts can be read."""

    def __getitem__(self, parts: Any) -> Tensor:  # noqa: ANN401  # whatever indexes a tensor
        """Read a part."""


def frozen(model: PreTrainedModel) -> PreTrainedModel:
    """Return the model without gradients, in eval mode."""
    model.requires_grad_(requires_grad=False).eval()
    return model


def load_sharded(settings: LoadSettings, mesh: DeviceMesh, prepare: Callable[[PreTrainedModel], T]) -> T:
    """Load a model into the shards of each rank: built without memory, sharded, then filled slice by slice.

    The weights are those of `load_causal_lm`, bit for bit. Where the checkpoint's tensors are not the model's, one for
    one (an adapter's folder, experts that transformers joins), each process reads the whole model and keeps its part.

    Args:
        settings: What to load, and how.
        mesh: Ranks that the weights are sharded over.
        prepare: Called before sharding, for example `frozen`, or to put an adapter on; its result is returned.

    Raises:
        FileNotFoundError: There is nothing to load at the path.
        ConfigError: As for `load_causal_lm`.
    """
    if settings.quantization is not None:
        msg = (
            f"`quantization: {settings.quantization}` of `{settings.path}` cannot be sharded. Leave it out, or use one "
            "device or DDP (configs/trainer/ddp.yaml)."
        )
        raise ConfigError(msg)
    sources = _sources(settings)
    if sources is None:
        rank_zero_info(f"`{settings.path}` is loaded as a whole by each process, then sharded.")
        model = settings.load()
        prepared = prepare(model)
        shard(model, mesh)
        return prepared
    model = _untouched(settings, sources)
    prepared = prepare(model)
    shard(model, mesh)
    fill(model, sources)
    with root_unsharded(model):
        check_causal(settings.path, model)
    return prepared


def _sources(settings: LoadSettings) -> Mapping[str, StoredTensor] | None:
    """Return where each of a model's tensors lies; None where the files do not hold them one for one."""
    from transformers.conversion_mapping import get_model_conversion_mapping

    if adapter_base(settings.path) is not None:
        return None
    if Path(settings.path).is_dir():
        check_model(Path(settings.path))
    config = load_config(settings.path, revision=settings.revision, trust_remote_code=settings.trust_remote_code)
    outline = _outline_of(config, settings)
    stored = stored_tensors(model_folder(settings.path, settings.revision))
    own: dict[int, list[str]] = {}
    for name, tensor in outline.state_dict(keep_vars=True).items():
        own.setdefault(id(tensor), []).append(name)
    named = [[name for name in names if name in stored] for names in own.values()]
    is_quantized = getattr(config, "quantization_config", None) is not None
    if (
        is_quantized
        or any(len(names) != 1 for names in named)
        or get_model_conversion_mapping(outline, add_legacy=False)
    ):
        return None  # the plain way converts them, or says what is wrong
    shapes = {name: tuple(tensor.shape) for name, tensor in outline.state_dict().items()}
    sources = {names[0]: stored[names[0]] for names in named}
    if any(source.shape != shapes[name] or source.dtype is None for name, source in sources.items()):
        return None
    check_weights(settings.path, outline, {"unexpected_keys": stored.keys() - shapes.keys()})
    return sources


def model_outline(
    config: PretrainedConfig,
    dtype: torch.dtype | None = None,
    attn_implementation: str | None = None,
    *,
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """Return a model without any weights, on the meta device; random state stays as it was.

    Args:
        config: The model's.
        dtype: Precision of its weights; None for what the configuration says.
        attn_implementation: Attention of transformers; None for the architecture's.
        trust_remote_code: Run code shipped with the model.
    """
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng(devices=[]), torch.device("meta"), explain_attention(attn_implementation):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            config,
            dtype=dtype or checkpoint_dtype(config) or torch.float32,
            attn_implementation=attn_implementation,
            trust_remote_code=trust_remote_code,
        )
    return model


def _outline_of(config: PretrainedConfig, settings: LoadSettings) -> PreTrainedModel:
    return model_outline(
        config,
        torch_dtype(settings.dtype),
        settings.attn_implementation,
        trust_remote_code=settings.trust_remote_code,
    )


def _untouched(settings: LoadSettings, sources: Mapping[str, StoredTensor]) -> PreTrainedModel:
    """Return a model whose buffers are right and whose weights are memory that nobody has touched, so takes none."""
    from transformers import GenerationConfig

    config = load_config(settings.path, revision=settings.revision, trust_remote_code=settings.trust_remote_code)
    dtype = torch_dtype(settings.dtype)
    own = dtype or checkpoint_dtype(config) or next(iter(sources.values())).dtype
    empty = {name: torch.empty(source.shape, dtype=own, device="cpu") for name, source in sources.items()}
    kind: Any = type(_outline_of(config, settings))
    with quiet_files(), torch.device("cpu"):
        model = cast(
            "PreTrainedModel",
            kind.from_pretrained(
                None,
                config=config,
                state_dict=empty,
                dtype=dtype or "auto",
                attn_implementation=settings.attn_implementation,
            ),
        )
    model.config.name_or_path = model.name_or_path = settings.path
    with contextlib.suppress(OSError):  # no generation_config.json: the model's own
        options = locate(settings.path, "a model", settings.revision)
        model.generation_config = GenerationConfig.from_pretrained(settings.path, **options)
    return model


@torch.no_grad()
def fill(model: PreTrainedModel, sources: Mapping[str, StoredTensor]) -> None:
    """Read each rank's shards of a model's weights, and whole what is not sharded; adapters stay as they are.

    Args:
        model: Sharded or not; with adapters on it or not.
        sources: Every tensor of its checkpoint by its name in the model without adapters.
    """
    filled = set()
    for own, tensor in itertools.chain(model.named_parameters(), model.named_buffers()):
        source = sources.get(own.replace(BASE_LAYER, "."))
        if source is not None:
            with safe_open(source.file, framework="pt") as content:  # closed again, for what was read stays mapped
                _read(content.get_slice(source.name), tensor)
            filled.add(source.name)
    assert len(filled) == len(sources)  # none is left untouched


def _read(stored: Slice, tensor: Tensor) -> None:
    """Copy what a rank needs of a stored tensor."""
    if not isinstance(tensor, DTensor):
        tensor.copy_(stored[...])
        return
    shape, offsets = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    if 0 not in shape:
        parts = tuple(slice(offset, offset + size) for offset, size in zip(offsets, shape, strict=True))
        tensor.to_local().copy_(stored[parts])
