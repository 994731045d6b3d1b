"""Causal language models: loading, LoRA, sharding, and forwards that never hold all logits."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from lightning_opd.functional.logprobs import predicting
from lightning_opd.types import LinearHead

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Lora:
    """A low-rank adapter on the student.

    Args:
        rank: Inner dimension.
        alpha: The update is scaled by alpha / rank.
        targets: Module names, or "all-linear".
        dropout: On the adapter's input while training.
        adapter_name: Name in the checkpoint.
    """

    rank: int = 16
    alpha: float = 32.0
    targets: str | list[str] = "all-linear"
    dropout: float = 0.0
    adapter_name: str = "student"


@dataclass(frozen=True)
class Student:
    """The model to train: an existing one by `path`, or a new one by `random_init`.

    Args:
        path: Folder or hub name of a Hugging Face causal language model (safetensors).
        random_init: A transformers configuration as a mapping with `model_type`; the vocabulary
            size defaults to the tokenizer's.
        tokenizer: Folder or hub name of the tokenizer; by default `path`.
        lora: Train this adapter instead of all weights.
        dtype: Precision of the loaded weights, for example float32 or bfloat16.
        attn_implementation: Attention of transformers: sdpa, eager, flash_attention_2.
        gradient_checkpointing: Recompute layer activations in the backward pass.
        trust_remote_code: Run code shipped with the model; only for models you trust.
    """

    path: str | None = None
    random_init: dict[str, object] | None = None
    tokenizer: str | None = None
    lora: Lora | None = None
    dtype: str = "float32"
    attn_implementation: str = "sdpa"
    gradient_checkpointing: bool = False
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        """Refuse a student without weights or without a tokenizer."""
        if (self.path is None) == (self.random_init is None):
            msg = (
                f"`student` needs either `path` or `random_init`, got path={self.path!r} and "
                f"random_init={'a mapping' if self.random_init else self.random_init!r}."
            )
            raise ValueError(msg)
        if self.path is None and self.tokenizer is None:
            msg = "`student.random_init` needs `student.tokenizer`: a folder with a tokenizer."
            raise ValueError(msg)
        if not isinstance(getattr(torch, self.dtype, None), torch.dtype):
            msg = f"`student.dtype` must name a torch dtype such as float32 or bfloat16, got {self.dtype!r}."
            raise ValueError(msg)  # the value is wrong, not its Python type

    @property
    def name(self) -> str:
        """What reports call this student."""
        return self.path or f"random {(self.random_init or {}).get('model_type', 'model')}"


def load_tokenizer(path: str, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """Load a tokenizer.

    Raises:
        FileNotFoundError: Nothing loadable at `path`.
    """
    from transformers import AutoTokenizer

    with _explain_missing("a tokenizer", path):
        return AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)


def load_causal_lm(
    path: str, *, dtype: str = "float32", attn_implementation: str = "sdpa", trust_remote_code: bool = False
) -> PreTrainedModel:
    """Load a causal language model from safetensors, in eval mode.

    Raises:
        FileNotFoundError: Nothing loadable at `path`.
    """
    from transformers import AutoModelForCausalLM

    with _explain_missing("a causal language model", path), _quiet_loading():
        return AutoModelForCausalLM.from_pretrained(
            path,
            dtype=getattr(torch, dtype),
            attn_implementation=attn_implementation,
            trust_remote_code=trust_remote_code,
            use_safetensors=True,
        )


@contextlib.contextmanager
def _explain_missing(what: str, path: str) -> Iterator[None]:
    msg = (
        f"Expected {what} at `{path}` (a folder, or a model's name on the hub such as org/name), found none. "
        "Check the path, or run the step that writes it first."
    )
    is_hub_name = path.count("/") <= 1 and not path.startswith((".", "/", "~"))
    if not is_hub_name and not Path(path).is_dir():  # the hub would be asked, and asked again
        raise FileNotFoundError(msg)
    try:
        yield
    except (OSError, ValueError) as error:
        if Path(path).is_dir() and any(Path(path).glob("*.json")):
            raise
        raise FileNotFoundError(msg) from error


@contextlib.contextmanager
def _quiet_loading() -> Iterator[None]:
    """Keep transformers' weight-loading bars off the console: ours show what matters."""
    from transformers.utils import logging

    enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if enabled:
            logging.enable_progress_bar()


def build_student(student: Student) -> nn.Module:
    """Load or initialise the student, with its adapter, in train mode."""
    if student.path is not None:
        model = load_causal_lm(
            student.path,
            dtype=student.dtype,
            attn_implementation=student.attn_implementation,
            trust_remote_code=student.trust_remote_code,
        )
    else:
        model = _random_model(student)
    if student.gradient_checkpointing:
        with warnings.catch_warnings():  # transformers is renaming the method; both names work
            warnings.simplefilter("ignore", FutureWarning)
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            model.enable_input_require_grads()
    if student.lora is None:
        return train_mode(model)
    return train_mode(_with_lora(model, student.lora))


def train_mode(model: nn.Module) -> nn.Module:
    """Return the model in train mode: loaded models come in eval mode, and Lightning leaves them there."""
    return model.train()


def _random_model(student: Student) -> PreTrainedModel:
    from transformers import AutoConfig, AutoModelForCausalLM

    settings = dict(student.random_init or {})
    if "model_type" not in settings:
        msg = f"`student.random_init` needs `model_type` (for example qwen3), got the keys {sorted(settings)}."
        raise ValueError(msg)
    tokenizer = load_tokenizer(str(student.tokenizer), trust_remote_code=student.trust_remote_code)
    settings.setdefault("vocab_size", len(tokenizer))
    settings |= {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    config = AutoConfig.for_model(str(settings.pop("model_type")), **settings)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(
        config, dtype=getattr(torch, student.dtype), attn_implementation=student.attn_implementation
    )
    return model


def _with_lora(model: PreTrainedModel, lora: Lora) -> nn.Module:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]  # peft scales by any number
        target_modules=lora.targets,
        lora_dropout=lora.dropout,
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, config, adapter_name=lora.adapter_name)


def causal_lm(student: nn.Module) -> PreTrainedModel:
    """Return the language model itself; an adapter lives inside its layers."""
    from peft import PeftModel

    return student.get_base_model() if isinstance(student, PeftModel) else student  # type: ignore[return-value]


def export_student(
    student: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    folder: str | Path,
    *,
    merge: bool = True,
    weights: Mapping[str, Tensor] | None = None,
) -> None:
    """Write a Hugging Face folder: weights, configuration and tokenizer.

    Args:
        student: A full model, or one with an adapter.
        tokenizer: Saved beside the weights.
        folder: Where to write.
        merge: Fold an adapter into the weights; False writes the adapter alone.
        weights: State dict to write instead of the student's own (gathered from shards).
    """
    import copy

    from peft import PeftModel

    if isinstance(student, PeftModel) and merge:
        merged = copy.deepcopy(student)
        if weights is not None:
            merged.load_state_dict(weights)
        merged.merge_and_unload().save_pretrained(folder)
    else:
        student.save_pretrained(folder, state_dict=weights)  # type: ignore[operator]
    tokenizer.save_pretrained(str(folder))


class LanguageModel:
    """A causal language model as the road sees it: states that predict tokens, and a head.

    Args:
        model: The Hugging Face model; its own forward and cache do all the work.
        vocab_size: Real tokens of its tokenizer; padded rows of the head are cut.
    """

    def __init__(self, model: PreTrainedModel, vocab_size: int) -> None:
        """Find out by a probe whether logits are `states @ weight.T + bias` and nothing else."""
        import inspect

        self.model = model
        self._head: nn.Module | None = model.get_output_embeddings()
        rows = self._head.weight.shape[0] if isinstance(self._head, nn.Linear) else model.config.vocab_size
        self.vocab_size = min(vocab_size, int(rows))
        self._keep_one = (
            {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}
        )
        self._is_linear = self._probe()

    @property
    def max_length(self) -> int:
        """Longest sequence in tokens that the model has positions for."""
        return int(getattr(self.model.config, "max_position_embeddings", 0) or 2**31)

    @torch.no_grad()
    def _probe(self) -> bool:
        if not isinstance(self._head, nn.Linear):
            return False
        was_training = self.model.training
        self.model.eval()
        token_ids = torch.arange(1, 5, device=self._head.weight.device).remainder(self.vocab_size)[None]
        states = self._decoder_states(token_ids, torch.ones_like(token_ids, dtype=torch.bool))
        logits = self.model(input_ids=token_ids, use_cache=False).logits
        self.model.train(was_training)
        if states.shape[:2] != logits.shape[:2]:
            return False
        tolerance = 10 * torch.finfo(logits.dtype).eps * max(1.0, float(logits.abs().max()))
        return bool(((self._head(states) - logits).abs() <= tolerance).all())

    def _decoder_states(
        self, token_ids: Int[Tensor, "batch time"], attention_mask: Bool[Tensor, "batch time"]
    ) -> Float[Tensor, "batch time hidden"]:
        captured: list[Tensor] = []

        def capture(module: nn.Module, arguments: object, output: object) -> None:
            captured.append(output[0])  # type: ignore[index]

        handle = self.model.get_decoder().register_forward_hook(capture)
        try:
            self._call(token_ids, attention_mask, **self._keep_one)
        finally:
            handle.remove()
        return captured[0]

    def _call(self, token_ids: Tensor, attention_mask: Tensor, **settings: int) -> Tensor:
        positions = (attention_mask.long().cumsum(dim=1) - 1).clamp(min=0)
        logits: Tensor = self.model(
            input_ids=token_ids,
            attention_mask=attention_mask.long(),
            position_ids=positions,
            use_cache=False,
            **settings,
        ).logits
        return logits

    def states(
        self, token_ids: Int[Tensor, "batch time"], attention_mask: Bool[Tensor, "batch time"]
    ) -> Float[Tensor, "batch time hidden"]:
        """Return the states from which the head predicts each token: `out[b, t]` predicts `token_ids[b, t]`.

        Where the model reshapes its logits after the output matrix, the states are the logits.
        """
        if self._is_linear:
            return predicting(self._decoder_states(token_ids, attention_mask))
        return predicting(self._call(token_ids, attention_mask))

    def head(self) -> LinearHead:
        """Return the output layer; under FSDP valid until the weights are resharded."""
        if not self._is_linear:
            return LinearHead(None, None, self.vocab_size)
        return LinearHead(self._head.weight, self._head.bias, self.vocab_size)  # type: ignore[union-attr, arg-type]


def shard(model: PreTrainedModel, mesh: DeviceMesh) -> None:
    """Shard a model's layers, then the model itself, over the data-parallel ranks (FSDP2)."""
    from torch.distributed.fsdp import fully_shard

    layers = set(model._no_split_modules or ())  # transformers' own list of layer classes
    for module in model.modules():
        if type(module).__name__ in layers:
            fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh)


@contextlib.contextmanager
def unsharded(model: nn.Module) -> Iterator[None]:
    """Gather a sharded model's weights once for everything inside; does nothing for others."""
    from torch.distributed.fsdp import FSDPModule

    groups = [module for module in model.modules() if isinstance(module, FSDPModule)]
    for group in groups:
        group.set_reshard_after_forward(False, recurse=False)
    for group in groups:
        group.unshard()
    try:
        yield
    finally:
        for index, group in enumerate(groups):
            group.reshard()
            group.set_reshard_after_forward(index != 0, recurse=False)
