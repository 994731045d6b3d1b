"""Models that would load and be wrong: refused in a line."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lightning_opd.errors import ConfigError
from lightning_opd.models.modes import evaluating

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CAUSAL_TOLERANCE = 10
"""Roundings, relative to the largest logit, by which logits may depend on the batch they are computed in."""


def check_weights(path: str, model: nn.Module, info: Mapping[str, Collection[Any]]) -> None:
    """Refuse a checkpoint whose weights and configuration disagree: weights that are made up, or layers left out.

    Args:
        path: Where the model came from.
        model: As loaded.
        info: The `missing_keys`, `unexpected_keys` and `mismatched_keys` that transformers reports.
    """
    missing = sorted(info.get("missing_keys", ()))
    if missing:
        msg = (
            f"The model at `{path}` has no weights for {len(missing)} tensors of its configuration ({_some(missing)}), "
            "which would be random. Correct its `config.json` (number of layers, tied embeddings), or complete the "
            "weights."
        )
        raise ConfigError(msg)
    reshaped = sorted(info.get("mismatched_keys", ()))
    if reshaped:
        name, saved, expected = reshaped[0]
        msg = (
            f"The weights at `{path}` have another shape than its `config.json` says in {len(reshaped)} tensors "
            f"(`{name}`: {list(saved)}, not {list(expected)}). Copy both files again from one model."
        )
        raise ConfigError(msg)
    stacks = {_stack(name) for name in model.state_dict()} - {None}
    left_out = sorted(name for name in info.get("unexpected_keys", ()) if _stack(name) in stacks)
    if left_out:
        msg = (
            f"The model at `{path}` has weights for {len(left_out)} tensors that its configuration does not have "
            f"({_some(left_out)}), which would be left out. Correct the number of layers in its `config.json`."
        )
        raise ConfigError(msg)


def _stack(name: str) -> str | None:
    """Return the list of layers that a weight belongs to, None outside of any."""
    found = re.match(r"(.*?)\.\d+\.", name)
    return found[1] if found else None


def _some(names: Collection[str]) -> str:
    return ", ".join(f"`{name}`" for name in list(names)[:3]) + (", …" if len(names) > 3 else "")


@torch.no_grad()
def check_causal(path: str, model: PreTrainedModel) -> None:
    """Refuse a model whose earlier logits depend on a later token, as an encoder's do."""
    device = model.get_input_embeddings().weight.device
    token_ids = torch.tensor([[1, 2, 3], [1, 2, 4]], device=device)  # type: ignore[arg-type]  # a parameter's
    with evaluating(model):
        logits = model(input_ids=token_ids, use_cache=False).logits[:, :2]
    tolerance = CAUSAL_TOLERANCE * torch.finfo(logits.dtype).eps * float(logits.abs().max())
    if float((logits[0] - logits[1]).abs().max()) > tolerance:
        kind = model.config.model_type
        msg = (
            f"Expected a causal language model at `{path}`, got one of type `{kind}` whose predictions read later "
            "tokens. Choose a decoder; an encoder such as BERT cannot generate."
        )
        raise ConfigError(msg)


def check_rows(path: str, model: PreTrainedModel, num_tokens: int) -> None:
    """Refuse a student that has no embedding for some token of its tokenizer.

    Args:
        path: Name of the student.
        model: The student.
        num_tokens: Of the tokenizer, with added tokens.
    """
    rows = int(model.config.get_text_config().vocab_size)
    if rows < num_tokens:
        msg = (
            f"The embedding of `{path}` has {rows} rows, fewer than the {num_tokens} tokens of its tokenizer. Use the "
            "tokenizer it was trained with, or enlarge the model once with `resize_token_embeddings` and save it."
        )
        raise ConfigError(msg)


def check_targets(model: PreTrainedModel, targets: str | list[str]) -> None:
    """Refuse names of an adapter's targets that no module has.

    Args:
        model: The model that gets the adapter.
        targets: Names, which match the end of a module's path; one regular expression; or "all-linear".
    """
    from transformers.pytorch_utils import Conv1D

    if targets == "all-linear":
        return
    paths = [path for path, _ in model.named_modules() if path]
    if isinstance(targets, str):
        try:
            unknown = [] if any(re.fullmatch(targets, path) for path in paths) else [targets]
        except re.error as error:
            msg = f"`student.lora.targets` `{targets}` is no regular expression ({error}). Use names, or all-linear."
            raise ConfigError(msg) from None
    else:
        unknown = [t for t in targets if not any(path == t or path.endswith(f".{t}") for path in paths)]
    if unknown or not targets:
        linear = {
            path.rpartition(".")[2]
            for path, module in model.named_modules()
            if isinstance(module, (nn.Linear, Conv1D)) and module is not model.get_output_embeddings()
        }
        msg = (
            f"`student.lora.targets`: the model has no module {_some(unknown) or 'for an empty list'}. Its linear "
            f"layers are {', '.join(sorted(linear))}; or use all-linear."
        )
        raise ConfigError(msg)


def check_fits(kept: Mapping[str, Tensor], own: Mapping[str, Tensor], trainable: set[str]) -> None:
    """Refuse the weights of another student's checkpoint.

    Args:
        kept: What the checkpoint has.
        own: All weights of the model.
        trainable: Names of those that a checkpoint keeps.

    Raises:
        ConfigError: With the first names of what is missing, of what is too much, and of what has another shape.
    """
    missing, unexpected = sorted(trainable - kept.keys()), sorted(kept.keys() - trainable)
    wrong = sorted(name for name in trainable & kept.keys() if kept[name].shape != own[name].shape)
    parts = [
        f"{len(names)} {what} ({', '.join(names[:3])}{'…' if len(names) > 3 else ''})"
        for names, what in (
            (missing, "trainable weights are missing"),
            (unexpected, "are unexpected"),
            ([f"{name} {[*kept[name].shape]} for {[*own[name].shape]}" for name in wrong], "have another shape"),
        )
        if names
    ]
    if parts:
        msg = (
            f"The checkpoint does not fit the student: {', '.join(parts)}. "
            "Use the student settings (full or LoRA, targets, rank) it was trained with."
        )
        raise ConfigError(msg)
