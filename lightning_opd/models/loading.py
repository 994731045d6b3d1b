"""Tokenizers and causal language models from a folder or the hub, in safetensors."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from lightning_opd.errors import ConfigError, MissingFileError
from lightning_opd.models.adapters import adapter_base, explain_base, put_adapter
from lightning_opd.models.checks import check_causal, check_weights
from lightning_opd.models.files import check_config, check_model, check_tokenizer
from lightning_opd.models.hub import locate
from lightning_opd.models.quantization import quantization_config
from lightning_opd.types import CONTROL_TOKENS, TEMPLATE_SETTINGS

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

MODEL = "a causal language model"


def load_tokenizer(
    path: str,
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
    chat_template_kwargs: Mapping[str, object] | None = None,
    control_tokens_in_text: str | None = None,
) -> PreTrainedTokenizerBase:
    """Load a tokenizer; that of the base model for an adapter that lies without one.

    Args:
        path: Folder or hub name.
        revision: Branch, tag or commit on the hub.
        trust_remote_code: Run code shipped with the model.
        chat_template_kwargs: Settings of the chat template; added to those that an export has saved with it.
        control_tokens_in_text: See `StudentConfig`.

    Raises:
        FileNotFoundError: There is nothing to load at `path`.
    """
    from transformers import AutoTokenizer

    base = adapter_base(path)
    if base is not None and not (Path(path) / "tokenizer_config.json").is_file():
        with explain_base(path, base):
            return load_tokenizer(
                base,
                trust_remote_code=trust_remote_code,
                chat_template_kwargs=chat_template_kwargs,
                control_tokens_in_text=control_tokens_in_text,
            )
    options = locate(path, "a tokenizer", revision)
    if Path(path).is_dir():
        check_tokenizer(Path(path))
    with _explained("a tokenizer", path):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            path, trust_remote_code=trust_remote_code, **options
        )
    if chat_template_kwargs:
        saved = tokenizer.init_kwargs.get(TEMPLATE_SETTINGS) or {}
        tokenizer.init_kwargs[TEMPLATE_SETTINGS] = {**saved, **chat_template_kwargs}
    if control_tokens_in_text is not None:
        tokenizer.init_kwargs[CONTROL_TOKENS] = control_tokens_in_text
    return tokenizer


def load_causal_lm(
    path: str,
    *,
    revision: str | None = None,
    dtype: str | None = None,
    attn_implementation: str | None = None,
    trust_remote_code: bool = False,
    quantization: str | None = None,
) -> PreTrainedModel:
    """Load a causal language model from safetensors, in eval mode; from an adapter's folder its base with it.

    Args:
        path: Folder or hub name.
        revision: Branch, tag or commit on the hub.
        dtype: Precision of the weights; by default the checkpoint's own.
        attn_implementation: Attention of transformers; by default what transformers chooses for the architecture.
        trust_remote_code: Run code shipped with the model.
        quantization: `nf4` or `int8` for weights in 4 or 8 bits; None for whole ones.

    Raises:
        FileNotFoundError: There is nothing to load at `path`.
        ConfigError: An adapter does not fit its base, weights and configuration disagree, the attention does not exist
            for this architecture, or the model is not causal.
    """
    from transformers import AutoModelForCausalLM

    base = adapter_base(path)
    if base is not None:
        with explain_base(path, base):
            model = load_causal_lm(
                base,
                dtype=dtype,
                attn_implementation=attn_implementation,
                trust_remote_code=trust_remote_code,
                quantization=quantization,
            )
        put_adapter(model, path)  # in place
        return model
    options = locate(path, MODEL, revision)
    if Path(path).is_dir():
        check_model(Path(path))
    bits = None
    if quantization is not None:
        declared = load_config(path, revision=revision, trust_remote_code=trust_remote_code)
        bits = quantization_config(quantization, torch_dtype(dtype) or checkpoint_dtype(declared))
    with _explained(MODEL, path), quiet_files(), explain_attention(attn_implementation):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=torch_dtype(dtype) or "auto",
            attn_implementation=attn_implementation,
            trust_remote_code=trust_remote_code,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # `check_weights` refuses them with their names
            quantization_config=bits,
            **options,
        )
    model = cast("PreTrainedModel", loaded[0])
    check_weights(path, model, loaded[1])
    check_causal(path, model)
    return model


def torch_dtype(name: str | None) -> torch.dtype | None:
    """Return a dtype of weights by its name, None for none.

    Raises:
        ConfigError: torch has no dtype of that name, or it is not one of real numbers.
    """
    if name is None:
        return None
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        msg = f"`dtype` must name a torch dtype such as float32 or bfloat16, got {name!r}."
        raise ConfigError(msg)  # the value is wrong, not its Python type
    return dtype


def load_config(path: str, *, revision: str | None = None, trust_remote_code: bool = False) -> PretrainedConfig:
    """Load a model's configuration; that of the base model for an adapter.

    Raises:
        FileNotFoundError: There is nothing to load at `path`.
        ConfigError: The configuration cannot be read.
    """
    from transformers import AutoConfig

    base = adapter_base(path)
    with explain_base(path, base):
        path, revision = base or path, revision if base is None else None
        options = locate(path, MODEL, revision)
    if Path(path).is_dir():
        check_config(Path(path))
    with _explained(MODEL, path):
        return AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code, **options)  # type: ignore[no-any-return]


def checkpoint_dtype(config: PretrainedConfig) -> torch.dtype | None:
    """Return the precision that a checkpoint says its weights have; None where it says nothing."""
    dtype = config.dtype or config.get_text_config().dtype
    return torch_dtype(dtype) if isinstance(dtype, str) else dtype


@contextlib.contextmanager
def explain_attention(name: str | None) -> Iterator[None]:
    """Say in a line that an attention does not exist for an architecture."""
    try:
        yield
    except (ValueError, ImportError) as error:
        if name is None or "attention" not in str(error).lower() or isinstance(error, ConfigError):
            raise
        reason = " ".join(str(error).split())
        msg = f"`attn_implementation: {name}` does not work here; leave it out for the architecture's own. {reason}"
        raise ConfigError(msg) from error


def declared_stop_ids(path: str, config: PretrainedConfig, *, revision: str | None = None) -> tuple[int, ...]:
    """Return the tokens at which a model says that it stops: one, or several as Llama 3 and Qwen 3 have.

    Args:
        path: Folder or hub name of the model, or folder of an adapter on it: its generation configuration counts.
        config: The model's configuration, which counts where it has no other.
        revision: Branch, tag or commit on the hub.
    """
    from transformers import GenerationConfig

    base = adapter_base(path)
    path, revision = base or path, revision if base is None else None
    options = locate(path, MODEL, revision)
    try:
        stops = GenerationConfig.from_pretrained(path, **options).eos_token_id
    except OSError:  # no generation_config.json
        stops = None
    if stops is None:
        own = getattr(config, "eos_token_id", None)
        stops = getattr(config.get_text_config(), "eos_token_id", None) if own is None else own
    return (stops,) if isinstance(stops, int) else tuple(stops or ())


@contextlib.contextmanager
def _explained(what: str, path: str) -> Iterator[None]:
    """Say in a line what transformers finds wrong with a model's files."""
    from huggingface_hub.errors import StrictDataclassError

    try:
        yield
    except (OSError, ValueError, TypeError, KeyError, StrictDataclassError) as error:
        if isinstance(error, ConfigError):
            raise
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        more = [line.strip() for line in str(error).splitlines() if line.strip()][1:2]
        msg = f"{what[0].upper()}{what[1:]} cannot be loaded from `{path}`: {' '.join([reason, *more])}"
        raise MissingFileError(msg) if isinstance(error, OSError) else ConfigError(msg) from error


@contextlib.contextmanager
def quiet_files() -> Iterator[None]:
    """Hide transformers' progress bars for reading and writing files."""
    from transformers.utils import logging

    enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if enabled:
            logging.enable_progress_bar()
