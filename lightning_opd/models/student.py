"""The model to train: its settings, and how it is built."""

from __future__ import annotations

import dataclasses
import math
import warnings
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Literal

import torch
from torch import nn

from lightning_opd.errors import ConfigError
from lightning_opd.models.adapter_targets import excluded_modules
from lightning_opd.models.adapters import adapter_base, explain_base, put_adapter
from lightning_opd.models.checks import check_causal, check_targets
from lightning_opd.models.loading import checkpoint_dtype, load_config, load_tokenizer, torch_dtype
from lightning_opd.models.quantization import Quantization
from lightning_opd.models.slices import LoadSettings, load_sharded

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from transformers import PretrainedConfig, PreTrainedModel


@dataclass(frozen=True)
class Lora:
    """A low-rank adapter on the student.

    Args:
        rank: Inner dimension.
        alpha: The update is scaled by alpha / rank.
        targets: Module names, or "all-linear".
        dropout: On the adapter's input in supervised training; distillation refuses it.
        adapter_name: Name in the checkpoint.
    """

    rank: int = 16
    alpha: float = 32.0
    targets: str | list[str] = "all-linear"
    dropout: float = 0.0
    adapter_name: str = "student"

    def __post_init__(self) -> None:
        """Check the numbers and the name."""
        if self.rank < 1:
            msg = f"`student.lora.rank` must be at least 1, got {self.rank}. Leave `lora` out to train all weights."
            raise ConfigError(msg)
        if self.alpha == 0 or not math.isfinite(self.alpha):
            msg = f"`student.lora.alpha` must be a finite number other than 0, got {self.alpha}. Usual is 2 · rank."
            raise ConfigError(msg)
        if not self.adapter_name or "." in self.adapter_name:
            msg = f"`student.lora.adapter_name` must be a word without dots, got {self.adapter_name!r}."
            raise ConfigError(msg)
        if not 0 <= self.dropout < 1:
            msg = f"`student.lora.dropout` must lie in [0, 1), got {self.dropout}."
            raise ConfigError(msg)


@dataclass(frozen=True)
class StudentConfig:
    """The model to train: an existing one by `path`, or a new one by `random_init`.

    Args:
        path: Folder or hub name of a Hugging Face causal language model (safetensors), or the folder of a LoRA
            adapter (adapter_config.json), which is trained further.
        revision: Branch, tag or commit of `path`, where that is a hub name; by default the newest.
        random_init: A transformers configuration as a mapping with `model_type`; the vocabulary
            size defaults to the tokenizer's.
        tokenizer: Folder or hub name of the tokenizer; by default `path`.
        lora: Train this adapter instead of all weights.
        dtype: Precision of the loaded weights, for example float32 or bfloat16. By default the checkpoint's; where all
            its weights are trained, at least float32, because a small update of a bfloat16 weight is lost in rounding.
        attn_implementation: Attention of transformers: sdpa, eager, flash_attention_2 (whose forwards read no padding);
            by default the architecture's.
        gradient_checkpointing: Recompute layer activations in the backward pass.
        trust_remote_code: Run code shipped with the model; only for models you trust.
        chat_template_kwargs: Settings of the chat template, for example `enable_thinking: false`. A template that
            asks for the date is told 26 July 2024, unless `date_string` or its like says otherwise.
        control_tokens_in_text: What becomes of a control token such as `<|im_end|>` that a user's or a tool's message
            spells out: `text` (ordinary text), `refuse` (an error), or `keep` (the control token itself).
        quantization: Keep the frozen weights under an adapter in 4 bits (`nf4`, as in QLoRA) or 8 (`int8`), by
            bitsandbytes; null for whole ones. An export has the weights that the adapter was trained on.
    """

    path: str | None = None
    random_init: dict[str, object] | None = None
    tokenizer: str | None = None
    lora: Lora | None = None
    dtype: str | None = None
    attn_implementation: str | None = None
    gradient_checkpointing: bool = False
    trust_remote_code: bool = False
    chat_template_kwargs: dict[str, object] | None = None
    control_tokens_in_text: Literal["text", "refuse", "keep"] = "text"
    revision: str | None = None
    quantization: Quantization | None = None

    def __post_init__(self) -> None:
        """Refuse a student without weights or without a tokenizer."""
        if (self.path is None) == (self.random_init is None):
            msg = (
                f"`student` needs either `path` or `random_init`, got path={self.path!r} and "
                f"random_init={'a mapping' if self.random_init else self.random_init!r}."
            )
            raise ConfigError(msg)
        if self.path is None and self.tokenizer is None:
            msg = "`student.random_init` needs `student.tokenizer`: a folder with a tokenizer."
            raise ConfigError(msg)
        if self.revision is not None and self.path is None:
            msg = f"`student.revision` belongs to a `path` on the hub, got {self.revision!r} beside `random_init`."
            raise ConfigError(msg)
        torch_dtype(self.dtype)
        if self.quantization is not None and (self.path is None or self.lora is None):
            msg = (
                f"`student.quantization: {self.quantization}` is for the frozen weights of a `path` under a new "
                "adapter. Set `student.lora`, or leave `quantization` out."
            )
            raise ConfigError(msg)

    @property
    def name(self) -> str:
        """The name of this student in reports."""
        return self.path or f"random {(self.random_init or {}).get('model_type', 'model')}"

    @cached_property
    def declared(self) -> PretrainedConfig:
        """The model's configuration, loaded once; of an adapter's folder that of its base."""
        from transformers import AutoConfig

        if self.path is not None:
            return load_config(self.path, revision=self.revision, trust_remote_code=self.trust_remote_code)
        settings = dict(self.random_init or {})
        if "model_type" not in settings:
            msg = f"`student.random_init` needs `model_type` (for example qwen3), got the keys {sorted(settings)}."
            raise ConfigError(msg)
        return AutoConfig.for_model(str(settings.pop("model_type")), **settings)


def build_student(student: StudentConfig, mesh: DeviceMesh | None = None) -> nn.Module:
    """Load or initialise the student, with its adapter, in train mode.

    Args:
        student: Its settings.
        mesh: Ranks to shard it over while it is loaded, so that none holds all of it; None for a whole one.
    """
    base = None if student.path is None else adapter_base(student.path)
    if base is not None:
        return train_mode(_adapter_to_go_on_with(student, base))
    if student.path is not None:
        settings = LoadSettings(
            student.path,
            student.revision,
            _dtype(student),
            student.attn_implementation,
            student.trust_remote_code,
            student.quantization,
        )
        if mesh is not None:
            return load_sharded(settings, mesh, partial(_prepared, student))
        model = settings.load()
    else:
        model = _random_model(student)
        check_causal(student.name, model)
    return _prepared(student, model)


def _prepared(student: StudentConfig, model: PreTrainedModel) -> nn.Module:
    """Return a model with its adapter, if it has one, in train mode."""
    if student.gradient_checkpointing:
        with warnings.catch_warnings():  # transformers is renaming the method; both names work
            warnings.simplefilter("ignore", FutureWarning)
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            model.enable_input_require_grads()
    if student.lora is None:
        return train_mode(model)
    return train_mode(with_lora(model, student.lora))


def _adapter_to_go_on_with(student: StudentConfig, base: str) -> nn.Module:
    """Return the base of an adapter's folder with that adapter on it, ready to be trained further."""
    path = str(student.path)
    if student.lora is not None:
        msg = (
            f"`student.path` `{path}` is an adapter, which is trained further, and `student.lora` asks for another "
            f"one. Remove `student.lora`, or set `student.path: {base}` to start a new adapter."
        )
        raise ConfigError(msg)
    with explain_base(path, base):
        saved = checkpoint_dtype(student.declared)
        dtype = student.dtype or (None if saved is None else str(saved).removeprefix("torch."))
        model = build_student(dataclasses.replace(student, path=base, dtype=dtype))
    return put_adapter(causal_lm(model), path, Lora.adapter_name, is_trainable=True)


def train_mode(model: nn.Module) -> nn.Module:
    """Return the model in train mode: loaded models are in eval mode, and Lightning does not change that."""
    return model.train()


def _dtype(student: StudentConfig) -> str | None:
    """Return the name of the student's precision; None for the checkpoint's."""
    if student.dtype is not None or student.lora is not None:
        return student.dtype
    saved = checkpoint_dtype(student.declared)
    is_half = saved is not None and torch.finfo(saved).bits < 32
    return "float32" if is_half else None


def random_config(student: StudentConfig) -> PretrainedConfig:
    """Return the configuration of a new model, with the tokenizer's vocabulary and control tokens."""
    tokenizer = load_tokenizer(str(student.tokenizer), trust_remote_code=student.trust_remote_code)
    own = {"vocab_size": len(tokenizer)} if "vocab_size" not in (student.random_init or {}) else {}
    own |= {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    return dataclasses.replace(student, random_init={**(student.random_init or {}), **own}).declared


def _random_model(student: StudentConfig) -> PreTrainedModel:
    from transformers import AutoModelForCausalLM

    model: PreTrainedModel = AutoModelForCausalLM.from_config(
        random_config(student),
        dtype=torch_dtype(student.dtype) or torch.float32,
        attn_implementation=student.attn_implementation,
    )
    return model


def with_lora(model: PreTrainedModel, lora: Lora) -> nn.Module:
    """Return the model with a new adapter on it.

    Raises:
        ConfigError: The model has no such target.
    """
    from peft import LoraConfig, get_peft_model

    check_targets(model, lora.targets)
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]  # peft scales by any number
        target_modules=lora.targets,
        exclude_modules=excluded_modules(model, lora.targets) or None,
        lora_dropout=lora.dropout,
        task_type="CAUSAL_LM",
    )
    with warnings.catch_warnings():  # peft reads an attribute that transformers is renaming
        warnings.simplefilter("ignore", FutureWarning)
        return get_peft_model(model, config, adapter_name=lora.adapter_name)


def causal_lm(student: nn.Module) -> PreTrainedModel:
    """Return the language model itself; an adapter is inside its layers."""
    from peft import PeftModel

    return student.get_base_model() if isinstance(student, PeftModel) else student  # type: ignore[return-value]
