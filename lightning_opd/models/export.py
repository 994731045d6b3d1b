"""Writes a student as a Hugging Face folder: a whole model, or its adapter alone."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from lightning_opd.models.adapters import WEIGHTS_FILE, quiet_peft
from lightning_opd.models.finite import check_finite
from lightning_opd.models.loading import quiet_files
from lightning_opd.models.quantization import dequantized, is_quantized
from lightning_opd.models.student import causal_lm

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def export_student(
    student: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    folder: str | Path,
    *,
    merge: bool = True,
    weights: dict[str, Tensor] | None = None,
) -> None:
    """Write a Hugging Face folder: weights, configuration and tokenizer.

    Weights are written in the precision of the checkpoint that the student came from, whatever precision it was
    trained in; those of a new model in their own.

    Args:
        student: A full model, or one with an adapter; it may be sharded if `weights` are given.
        tokenizer: Saved beside the weights.
        folder: Where to write.
        merge: Merge an adapter into the weights; False writes the adapter alone, as peft, transformers and vLLM
            load it: adapter_config.json and adapter_model.safetensors.
        weights: State dict to write instead of the student's own (gathered from shards).

    Raises:
        NonFiniteWeightsError: A weight is NaN or infinite.
    """
    from peft import PeftModel

    check_finite(student.state_dict() if weights is None else weights, f"model `{folder}`")
    with quiet_files():
        if not isinstance(student, PeftModel):
            _save_model(student, folder, weights)  # type: ignore[arg-type]  # a student is a transformers model
        elif merge:
            _save_merged(student, folder, weights)
        else:
            _save_adapter(student, Path(folder), weights)
    tokenizer.save_pretrained(str(folder))


def _save_model(model: PreTrainedModel, folder: str | Path, weights: dict[str, Tensor] | None) -> None:
    dtype = _source_dtype(model)
    if dtype == model.dtype:
        model.save_pretrained(folder, state_dict=weights)
        return
    fresh = _empty(model)
    fresh.load_state_dict(_on_cpu(model, weights), assign=True)
    fresh.tie_weights()  # they were assigned one by one
    fresh.to(dtype)  # type: ignore[arg-type]  # transformers annotates a device
    fresh.save_pretrained(folder)


def _save_merged(student: PeftModel, folder: str | Path, weights: dict[str, Tensor] | None) -> None:
    """Merge in a model that is built anew around copies of the weights: a sharded one cannot be copied."""
    from peft import PeftModelForCausalLM

    model, name = causal_lm(student), student.active_adapter
    fresh, config = _empty(model), copy.copy(student.peft_config[name])
    config.inference_mode = True
    with torch.device("meta"), quiet_peft():
        adapted = PeftModelForCausalLM(fresh, config, adapter_name=name, autocast_adapter_dtype=False)
    own = dequantized(student, weights) if is_quantized(model) else _on_cpu(student, weights)
    adapted.load_state_dict(_without_others(student, name, own, adapted), assign=True)
    fresh.tie_weights()  # they were assigned one by one
    merged = adapted.merge_and_unload()
    merged.to(_source_dtype(model))
    merged.save_pretrained(folder)


def _without_others(student: PeftModel, name: str, weights: dict[str, Tensor], adapted: nn.Module) -> dict[str, Tensor]:
    """Return the weights of a model that has no other adapter: the teachers' lie on the student's base, too."""
    others, expected = [f".{other}." for other in student.peft_config if other != name], adapted.state_dict()
    kept = {key: value for key, value in weights.items() if not any(other in key for other in others)}
    return {key if key in expected else key.replace(".base_layer.", "."): value for key, value in kept.items()}


def _save_adapter(student: PeftModel, folder: Path, weights: dict[str, Tensor] | None) -> None:
    """Write an adapter into the folder itself: peft makes a subfolder of any name but its default one."""
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    name, dtype = student.active_adapter, _source_dtype(causal_lm(student))
    state = get_peft_model_state_dict(student, weights, adapter_name=name, save_embedding_layers=False)
    config = copy.copy(student.peft_config[name])
    config.inference_mode = True
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(str(folder))
    tensors = {key: value.detach().to("cpu", dtype).contiguous() for key, value in state.items()}
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})


def _empty(model: PreTrainedModel) -> PreTrainedModel:
    """Return a model of the same class and configuration without memory for its weights."""
    with torch.device("meta"):
        config = copy.deepcopy(model.config)
        if is_quantized(model):
            del config.quantization_config
        fresh = type(model)(config)  # of a sharded model: its own class again
    fresh.generation_config = model.generation_config
    return fresh


def _on_cpu(model: nn.Module, weights: dict[str, Tensor] | None) -> dict[str, Tensor]:
    """Return gathered weights, or copies of the model's own."""
    if weights is not None:
        return weights
    return {name: value.detach().to("cpu", copy=True) for name, value in model.state_dict().items()}


def _source_dtype(model: PreTrainedModel) -> torch.dtype:
    """Return the precision of the checkpoint that a model was loaded from; its own where there is none."""
    from transformers import PretrainedConfig

    path = model.config.name_or_path
    if not path:
        return model.dtype
    try:
        settings, _ = PretrainedConfig.get_config_dict(path)
    except OSError:  # moved since
        return model.dtype
    dtype = getattr(torch, str(settings.get("dtype", settings.get("torch_dtype"))), None)
    return dtype if isinstance(dtype, torch.dtype) else model.dtype
