"""Low-rank adapters in folders, as peft writes them: on which model they belong, and how they are put on it."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from lightning_opd.errors import ConfigError, MissingFileError
from lightning_opd.models.files import check_json, check_safetensors

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel
    from transformers import PreTrainedModel

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"


def adapter_base(path: str) -> str | None:
    """Return the folder or hub name of the model that an adapter's folder belongs on, or None for any other path.

    Raises:
        ConfigError: The folder does not name its base, or names another adapter.
    """
    file = Path(path) / CONFIG_FILE
    if not file.is_file():
        return None
    base = check_json(file).get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        msg = (
            f"`{file}` names no base model, got `base_model_name_or_path` {base!r}. Write there the folder or hub name "
            "of the model that the adapter was trained on."
        )
        raise ConfigError(msg)
    if (Path(base) / CONFIG_FILE).is_file():
        msg = (
            f"The adapter `{path}` belongs on `{base}`, which is an adapter itself. Merge that one into its base first "
            "(`export` with `merge: true`), and name the merged folder in `base_model_name_or_path`."
        )
        raise ConfigError(msg)
    return base


@contextlib.contextmanager
def explain_base(path: str, base: str | None) -> Iterator[None]:
    """Say of a missing model that an adapter belongs on it, if one does.

    Args:
        path: Folder of the adapter.
        base: What `adapter_base` says about it.
    """
    try:
        yield
    except MissingFileError:
        if base is None:
            raise
        msg = (
            f"The adapter `{path}` belongs on the model `{base}`, which is not there. Correct "
            f"`base_model_name_or_path` in its {CONFIG_FILE}, or put the model there."
        )
        raise MissingFileError(msg) from None


@contextlib.contextmanager
def quiet_peft() -> Iterator[None]:
    """Hide that peft reads an attribute which transformers is renaming."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield


def put_adapter(model: PreTrainedModel, path: str, name: str = "default", *, is_trainable: bool = False) -> PeftModel:
    """Put the adapter of a folder on its base model; the base is frozen.

    A trained adapter is in at least float32, as peft keeps new ones; a frozen one has the base's precision.

    Args:
        model: The loaded base; its layers are wrapped in place.
        path: Folder of the adapter.
        name: Of the adapter inside the model.
        is_trainable: Whether its weights take gradients.

    Raises:
        ConfigError: The adapter is of a kind that does not lie inside layers, or its weights do not fit the base.
        FileNotFoundError: The folder has no weights in safetensors.
    """
    from peft import PeftModelForCausalLM

    config, weights = _read(path, is_trainable=is_trainable)
    with quiet_peft(), _explain_targets(path, config):
        adapted = PeftModelForCausalLM(model, config, adapter_name=name, autocast_adapter_dtype=is_trainable)
    _load(adapted, name, config, weights, path)
    return adapted


def add_adapter(model: PeftModel, path: str, name: str) -> None:
    """Put the adapter of a folder beside those that a model has already; frozen, and not active.

    Args:
        model: With at least one adapter of the same kind.
        path: Folder of the adapter.
        name: Of the adapter inside the model.

    Raises:
        ConfigError: As `put_adapter`; or the adapter changes weights outside its own layers.
        FileNotFoundError: The folder has no weights in safetensors.
    """
    config, weights = _read(path, is_trainable=False)
    with quiet_peft(), _explain_targets(path, config):
        model.add_adapter(name, config, autocast_adapter_dtype=False)
    _load(model, name, config, weights, path)


def check_switchable(path: str) -> None:
    """Refuse an adapter that changes weights which other adapters on its base use.

    Raises:
        ConfigError: It has biases of the base, or whole modules (`modules_to_save`).
    """
    settings = check_json(Path(path) / CONFIG_FILE)
    bias, whole = settings.get("bias", "none"), settings.get("modules_to_save")
    if bias != "none" or whole:
        what = f"`modules_to_save` {whole}" if whole else f"`bias: {bias}`"
        msg = (
            f"The adapter `{path}` has {what}, which changes weights of the base that others use. Load it with a "
            f"model of its own: `class_path: LocalTeacher, init_args: {{path: {path}}}`."
        )
        raise ConfigError(msg)


def _read(path: str, *, is_trainable: bool) -> tuple[PeftConfig, dict[str, Tensor]]:
    """Return an adapter's configuration and weights."""
    from peft import PeftConfig
    from safetensors.torch import load_file

    try:
        config = PeftConfig.from_pretrained(path)
    except (KeyError, TypeError, ValueError) as error:
        msg = f"`{Path(path) / CONFIG_FILE}` describes no adapter that peft knows ({error!r}). Save it again."
        raise ConfigError(msg) from None
    if config.is_prompt_learning:
        kind = getattr(config.peft_type, "value", config.peft_type)
        msg = f"The adapter `{path}` is of the kind {kind}, which adds tokens instead of changing layers. Use LoRA."
        raise ConfigError(msg)
    file = Path(path) / WEIGHTS_FILE
    if not file.is_file():
        msg = f"Expected the adapter's weights at `{file}`, found none. Save them as safetensors."
        raise MissingFileError(msg)
    check_safetensors(file)
    config.inference_mode = not is_trainable
    return config, load_file(file)


@contextlib.contextmanager
def _explain_targets(path: str, config: PeftConfig) -> Iterator[None]:
    try:
        yield
    except ValueError as error:  # none of its target modules, or another kind of adapter than those beside it
        msg = f"The adapter `{path}` does not fit its base `{config.base_model_name_or_path}`: {error}"
        raise ConfigError(msg) from None


def _load(adapted: PeftModel, name: str, config: PeftConfig, weights: dict[str, Tensor], path: str) -> None:
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    expected = get_peft_model_state_dict(adapted, adapter_name=name, save_embedding_layers=False)
    _check_fit(expected, weights, path, str(config.base_model_name_or_path))
    set_peft_model_state_dict(adapted, weights, adapter_name=name)


def _check_fit(expected: Mapping[str, Tensor], weights: Mapping[str, Tensor], path: str, base: str) -> None:
    """Refuse an adapter of another model: peft would leave out what does not fit, without a word."""
    problems = []
    for what, names in (
        ("no place for", sorted(weights.keys() - expected.keys())),
        ("no weights for", sorted(expected.keys() - weights.keys())),
        (
            "another shape of",
            sorted(k for k in expected.keys() & weights.keys() if expected[k].shape != weights[k].shape),
        ),
    ):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            problems.append(f"{what} {', '.join(names[:3])}{more}")
    if problems:
        msg = (
            f"The adapter `{path}` does not fit its base `{base}`: {'; '.join(problems)}. Correct "
            f"`base_model_name_or_path` in its {CONFIG_FILE}, or save the adapter again."
        )
        raise ConfigError(msg)
