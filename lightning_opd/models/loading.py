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
from lightning_opd.types import CONTROL_TOKENS, TEMPLATE_SETTINGS

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


def load_tokenizer(
    path: str,
    *,
    trust_remote_code: bool = False,
    chat_template_kwargs: Mapping[str, object] | None = None,
    control_tokens_in_text: str | None = None,
) -> PreTrainedTokenizerBase:
    """Load a tokenizer; that of the base model for an adapter that lies without one.

    Args:
        path: Folder or hub name.
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
    with _explain_missing("a tokenizer", path):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
    if chat_template_kwargs:
        saved = tokenizer.init_kwargs.get(TEMPLATE_SETTINGS) or {}
        tokenizer.init_kwargs[TEMPLATE_SETTINGS] = {**saved, **chat_template_kwargs}
    if control_tokens_in_text is not None:
        tokenizer.init_kwargs[CONTROL_TOKENS] = control_tokens_in_text
    return tokenizer


def load_causal_lm(
    path: str,
    *,
    dtype: str | None = None,
    attn_implementation: str | None = None,
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """Load a causal language model from safetensors, in eval mode; from an adapter's folder its base with it.

    Args:
        path: Folder or hub name.
        dtype: Precision of the weights; by default the checkpoint's own.
        attn_implementation: Attention of transformers; by default what transformers chooses for the architecture.
        trust_remote_code: Run code shipped with the model.

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
                base, dtype=dtype, attn_implementation=attn_implementation, trust_remote_code=trust_remote_code
            )
        put_adapter(model, path)  # in place
        return model
    with _explain_missing("a causal language model", path), quiet_files(), _explain_attention(attn_implementation):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=torch_dtype(dtype) or "auto",
            attn_implementation=attn_implementation,
            trust_remote_code=trust_remote_code,
            use_safetensors=True,
            output_loading_info=True,
        )
    model = cast("PreTrainedModel", loaded[0])
    check_weights(path, model, loaded[1])
    check_causal(path, model)
    return model


def torch_dtype(name: str | None) -> torch.dtype | None:
    """Return a dtype by its name, None for none.

    Raises:
        ConfigError: torch has no dtype of that name.
    """
    if name is None:
        return None
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        msg = f"`dtype` must name a torch dtype such as float32 or bfloat16, got {name!r}."
        raise ConfigError(msg)  # the value is wrong, not its Python type
    return dtype


def load_config(path: str, *, trust_remote_code: bool = False) -> PretrainedConfig:
    """Load a model's configuration; that of the base model for an adapter.

    Raises:
        FileNotFoundError: There is nothing to load at `path`.
    """
    from transformers import AutoConfig

    path = adapter_base(path) or path
    with _explain_missing("a causal language model", path):
        return AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)  # type: ignore[no-any-return]


def checkpoint_dtype(config: PretrainedConfig) -> torch.dtype | None:
    """Return the precision that a checkpoint says its weights have; None where it says nothing."""
    dtype = config.dtype or config.get_text_config().dtype
    return torch_dtype(dtype) if isinstance(dtype, str) else dtype


@contextlib.contextmanager
def _explain_attention(name: str | None) -> Iterator[None]:
    try:
        yield
    except (ValueError, ImportError) as error:
        if name is None or "attention" not in str(error).lower() or isinstance(error, ConfigError):
            raise
        reason = " ".join(str(error).split())
        msg = f"`attn_implementation: {name}` does not work here; leave it out for the architecture's own. {reason}"
        raise ConfigError(msg) from error


def declared_stop_ids(path: str, config: PretrainedConfig) -> tuple[int, ...]:
    """Return the tokens at which a model says that it stops: one, or several as Llama 3 and Qwen 3 have.

    Args:
        path: Folder or hub name of the model, or folder of an adapter on it: its generation configuration counts.
        config: The model's configuration, which counts where it has no other.
    """
    from transformers import GenerationConfig

    try:
        stops = GenerationConfig.from_pretrained(adapter_base(path) or path).eos_token_id
    except OSError:  # no generation_config.json
        stops = None
    if stops is None:
        stops = getattr(config, "eos_token_id", None)
    return (stops,) if isinstance(stops, int) else tuple(stops or ())


@contextlib.contextmanager
def _explain_missing(what: str, path: str) -> Iterator[None]:
    msg = (
        f"Expected {what} at `{path}` (a folder, or a model's name on the hub such as org/name), found none. "
        "Check the path, or run the step that makes it first."
    )
    is_hub_name = path.count("/") <= 1 and not path.startswith((".", "/", "~"))
    if not is_hub_name and not Path(path).is_dir():  # otherwise the hub would be asked several times
        raise MissingFileError(msg)
    try:
        yield
    except (OSError, ValueError) as error:
        if isinstance(error, ConfigError) or (Path(path).is_dir() and any(Path(path).glob("*.json"))):
            raise
        raise MissingFileError(msg) from error


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
