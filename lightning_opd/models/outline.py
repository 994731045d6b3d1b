"""A student without weights: its layers and shapes, from configurations alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from lightning_opd.models.adapters import adapter_base, quiet_peft
from lightning_opd.models.loading import checkpoint_dtype
from lightning_opd.models.sizes import num_weights
from lightning_opd.models.slices import model_outline
from lightning_opd.models.student import StudentConfig, random_config, with_lora

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Outline:
    """What is known of a student before any weight is loaded.

    Args:
        model: The language model on the meta device.
        num_parameters: Of the whole model without its adapter.
        num_trained: Of what is trained: the adapter, or all.
        export_bytes: Of one exported weight, in bytes.
        num_targets: Layers that have an adapter.
        narrowest_target: Smaller side of the narrowest of these layers; None without one.
    """

    model: PreTrainedModel
    num_parameters: int
    num_trained: int
    export_bytes: int
    num_targets: int
    narrowest_target: int | None


def outline(student: StudentConfig) -> Outline:
    """Return a student's outline; random state stays as it was.

    Raises:
        ConfigError: The adapter's targets are none of the model's modules.
    """
    from peft import PeftConfig, PeftModelForCausalLM
    from peft.tuners.lora import LoraLayer

    config = random_config(student) if student.path is None else student.declared
    model = model_outline(config, trust_remote_code=student.trust_remote_code)
    num_parameters = num_weights(model)
    with torch.random.fork_rng(devices=[]), torch.device("meta"), quiet_peft():
        module: nn.Module = model
        if student.path is not None and adapter_base(student.path) is not None:
            peft = PeftConfig.from_pretrained(student.path)
            peft.inference_mode = False
            module = PeftModelForCausalLM(model, peft, autocast_adapter_dtype=False)
        elif student.lora is not None:
            module = with_lora(model, student.lora)
    saved = checkpoint_dtype(config) if student.path is not None else getattr(torch, student.dtype or "float32")
    layers = [layer for layer in module.modules() if isinstance(layer, LoraLayer)]
    targets = [min(int(layer.in_features or 0), int(layer.out_features or 0)) for layer in layers]
    return Outline(
        model,
        num_parameters,
        sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad),
        torch.finfo(saved or torch.float32).bits // 8,
        len(targets),
        min(targets, default=None),
    )
