"""What a resumed run must have in common with the run it goes on from, compared by name."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from torch import Tensor

from lightning_opd.errors import ConfigError
from lightning_opd.interfaces import RolloutEngine
from lightning_opd.types import Prompt

SAME_RESULT = {
    "attn_implementation",
    "batch_size",
    "gradient_checkpointing",
    "max_tokens_per_forward",
    "trust_remote_code",
    "warn_above",
}
"""Arguments of components that change how something is computed, never what."""


class RecordsSettings(ABC):
    """Something whose settings decide what a run learns."""

    @abstractmethod
    def resume_settings(self) -> dict[str, object]:
        """Return the settings by the names that a configuration gives them; what is not known yet is left out."""


def describe(value: object) -> object:
    """Return a setting as plain values: components by their class and constructor arguments, paths in full.

    Example:
        >>> from lightning_opd.types import Sampling
        >>> describe({"sampling": Sampling(top_p=0.9)})["sampling"]["top_p"]
        0.9
    """
    if value is None or isinstance(value, bool | int | float | Tensor):
        plain: object = value.tolist() if isinstance(value, Tensor) else value
        return float(plain) if isinstance(plain, float) else plain  # numpy's are no plain values
    if isinstance(value, str | Path):
        return str(Path(value).resolve()) if len(str(value)) < 1024 and Path(value).exists() else str(value)
    if isinstance(value, Mapping):
        return {str(key): describe(item) for key, item in value.items()}
    if isinstance(value, Sequence):
        return [describe(item) for item in value]
    if inspect.isroutine(value) or isinstance(value, type):
        return f"{value.__module__}.{value.__qualname__}"
    return _describe_component(value)


def _describe_component(value: object) -> dict[str, object]:
    kind = type(value)
    if dataclasses.is_dataclass(value):
        names: Iterable[str] = [f.name for f in dataclasses.fields(value)]
    else:
        names = list(inspect.signature(kind.__init__).parameters)[1:]
    own = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)} if dataclasses.is_dataclass(value) else {}
    own = own or getattr(value, "__dict__", {})
    found = {name: own.get(name, own.get(f"_{name}", value)) for name in names if name not in SAME_RESULT}
    settings = {name: describe(item) for name, item in found.items() if item is not value}
    return {"class_path": f"{kind.__module__}.{kind.__qualname__}", **settings}


def describe_settings(values: Mapping[str, object]) -> dict[str, object]:
    """Return the settings among an optimiser's defaults or a schedule's attributes: what is public and plain."""
    state = {"last_epoch", "base_lrs", "optimizer", "params"}
    plain = {k: v for k, v in values.items() if not k.startswith("_") and k not in state and not callable(v)}
    return {name: describe(value) for name, value in plain.items()}


def describe_engine(engine: RolloutEngine) -> dict[str, object]:
    """Return what an engine's replies depend on: not its servers, nor how many replies it draws at once."""
    kind = type(engine)
    return {"class_path": f"{kind.__module__}.{kind.__qualname__}", "overlap": int(engine.generates_ahead)}


def fingerprint(prompts: Sequence[Prompt]) -> str:
    """Return the number of prompts and a hash of all that a run reads of them, in their order."""
    digest = hashlib.blake2b(digest_size=8)
    for prompt in prompts:
        messages, columns = [dict(message) for message in prompt.messages], dict(prompt.columns)
        row = (prompt.key, prompt.teacher, prompt.domain, messages, columns)
        digest.update(json.dumps(row, default=lambda other: type(other).__qualname__).encode())
    return f"{len(prompts)} prompts with hash {digest.hexdigest()}"


def differences(recorded: Mapping[str, object], current: Mapping[str, object]) -> dict[str, tuple[object, object]]:
    """Return what both know and see differently: name → (recorded, current); parts of a component by their names.

    Example:
        >>> differences({"a": {"lr": 1, "x": 2}, "b": 1}, {"a": {"lr": 3, "x": 2}})
        {'a.lr': (1, 3)}
    """
    found: dict[str, tuple[object, object]] = {}
    for name in recorded.keys() & current.keys():
        old, new = recorded[name], current[name]
        if isinstance(old, Mapping) and isinstance(new, Mapping) and old.get("class_path") == new.get("class_path"):
            missing = dict.fromkeys([*old, *new])
            inner = differences({**missing, **old}, {**missing, **new})
            found |= {f"{name}.{key}": pair for key, pair in inner.items()}
        elif old != new:
            found[name] = (old, new)
    return dict(sorted(found.items()))


def check_resume(
    recorded: Mapping[str, object], current: Mapping[str, object], allowed: Sequence[str]
) -> dict[str, tuple[object, object]]:
    """Return what differs and is allowed to.

    Args:
        recorded: Settings in a checkpoint.
        current: Settings of the run that is to go on from it.
        allowed: Names that may differ, with all that lies below them.

    Raises:
        ConfigError: Something else differs; with its name, both values and the cure.
    """
    found = differences(recorded, current)
    refused = {name: pair for name, pair in found.items() if not is_allowed(name, allowed)}
    if refused:
        lines = "; ".join(f"`{name}` was {_short(old)}, is {_short(new)}" for name, (old, new) in refused.items())
        names = ",".join([*allowed, *refused])
        msg = (
            f"the checkpoint is of a run with other settings: {lines}. Set them as they were, start anew without "
            f"`--ckpt_path`, or go on all the same, no longer the same run, with `--model.allow_changed=[{names}]`."
        )
        raise ConfigError(msg)
    return found


def is_allowed(name: str, allowed: Sequence[str]) -> bool:
    """Return whether a setting, or something that it belongs to, is named."""
    return any(name == entry or name.startswith(f"{entry}.") for entry in allowed)


def _short(value: object) -> str:
    """Return a value as one would write it; a component by its class."""
    text = str(value.get("class_path", value)) if isinstance(value, Mapping) else str(value)
    return f"`{text}`" if len(text) <= 80 else f"`{text[:80]}…`"
