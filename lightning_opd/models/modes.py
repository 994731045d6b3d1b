"""Train and eval mode, and what acts in one of them only: dropout."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import nn

TRAINING_NOISE = ("jitter_noise", "input_jitter_noise", "router_jitter_noise")
"""Names under which mixtures of experts shake their router's input while training."""


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model into eval mode for everything inside; every module gets its own mode back."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, was_training in modes:
            module.training = was_training


def remove_dropout(model: nn.Module) -> dict[str, float]:
    """Set every dropout of a model to zero, and other noise that only acts while training; in place.

    Dropout modules, probabilities that a module keeps as a number, and those that a forward reads off the
    configuration.

    Returns:
        What was not zero: name → probability; several modules of one name count once.
    """
    removed: dict[str, float] = {}
    for path, module in model.named_modules():
        is_dropout = "dropout" in type(module).__name__.lower()
        for name, value in list(vars(module).items()):
            is_noise = "drop" in name or name in TRAINING_NOISE or (is_dropout and name == "p")
            if is_noise and isinstance(value, float) and value > 0:
                setattr(module, name, 0.0)
                owner = path.rpartition(".")[2] or type(module).__name__
                removed[owner if is_dropout else name] = value
        config = vars(module).get("config")
        for name, value in list(vars(config).items()) if config is not None else ():
            is_of_classifier = name.startswith(("classifier", "summary"))
            if "drop" in name and not is_of_classifier and isinstance(value, float) and value > 0:
                setattr(config, name, 0.0)
    return removed
