"""Frozen weights in 4 or 8 bits, by bitsandbytes where it is installed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import Tensor, nn

from lightning_opd.errors import ConfigError

if TYPE_CHECKING:
    from transformers import BitsAndBytesConfig, PreTrainedModel

Quantization = Literal["nf4", "int8"]


def quantization_config(name: str, dtype: torch.dtype | None) -> BitsAndBytesConfig:
    """Return what `from_pretrained` is told.

    Args:
        name: `nf4` (4 bits, QLoRA's) or `int8`.
        dtype: Precision of the matrix products; None for bfloat16.

    Raises:
        ConfigError: There is no such quantisation, or bitsandbytes is not installed.
    """
    from transformers import BitsAndBytesConfig
    from transformers.utils.import_utils import is_bitsandbytes_available

    if name not in get_args(Quantization):
        msg = f"`quantization` must be one of {', '.join(get_args(Quantization))}, or null; got {name!r}."
        raise ConfigError(msg)
    if not is_bitsandbytes_available():
        msg = f"`quantization: {name}` needs bitsandbytes: `pip install bitsandbytes`."
        raise ConfigError(msg)
    if name == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype or torch.bfloat16
    )


def is_quantized(model: PreTrainedModel) -> bool:
    """Return whether a model was loaded in fewer bits."""
    return bool(getattr(model, "is_quantized", False))


@torch.no_grad()
def dequantized(model: nn.Module, weights: dict[str, Tensor] | None) -> dict[str, Tensor]:
    """Return the weights of a quantised model with an adapter on it as it computes with them, on the CPU.

    Args:
        model: With layers of bitsandbytes; anything else keeps its weights.
        weights: State dict to take everything else from; None for the model's own.
    """
    from peft.utils.integrations import dequantize_module_weight

    given = model.state_dict() if weights is None else weights
    layers = {
        path: module for path, module in model.named_modules() if type(module).__module__.startswith("bitsandbytes")
    }
    inside = tuple(f"{path}.weight" for path in layers)  # beside the weights lie their scales
    scales = tuple(f"{path}.SCB" for path in layers)
    kept = {
        name: value.detach().to("cpu", copy=True)
        for name, value in given.items()
        if not name.startswith(inside) and name not in scales
    }
    whole = {f"{path}.weight": dequantize_module_weight(module).detach().to("cpu") for path, module in layers.items()}
    return {**kept, **whole}
