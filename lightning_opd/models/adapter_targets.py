"""Which linear layers an adapter can act on: those that the model calls."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from lightning_opd.errors import ConfigError

MAMBA_PARAMETERS = ("A_log", "D")
"""A Mamba mixer, of whatever model, has both; a gated delta net has the first alone."""

CALLED = "in_proj"
"""The only linear layer that a Mamba mixer calls; its kernels read the weights of the others past their modules."""


def excluded_modules(model: nn.Module, targets: str | Sequence[str]) -> list[str]:
    """Return the linear layers that an adapter on all of them must leave out, since it would have no effect there.

    Args:
        model: Without an adapter.
        targets: Of the adapter: names of modules, or "all-linear".

    Raises:
        ConfigError: The targets name such a layer.
    """
    bypassed = [
        f"{path}.{name}"
        for path, mixer in model.named_modules()
        if all(parameter in dict(mixer.named_parameters(recurse=False)) for parameter in MAMBA_PARAMETERS)
        for name, layer in mixer.named_children()
        if isinstance(layer, nn.Linear) and name != CALLED
    ]
    named = [] if isinstance(targets, str) else [target for target in targets if _matches(target, bypassed)]
    if named:
        msg = (
            f"`student.lora.targets` names {named}, whose weights this model's Mamba layers read directly, so that an "
            f"adapter has no effect. Use `{CALLED}` there, or `all-linear`, which leaves them out."
        )
        raise ConfigError(msg)
    return bypassed if targets == "all-linear" else []


def _matches(target: str, paths: Sequence[str]) -> bool:
    return any(path == target or path.endswith(f".{target}") for path in paths)
