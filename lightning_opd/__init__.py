"""On-policy distillation with Lightning: a student generates, a teacher scores every token, the student learns."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lightning_opd.callbacks import FormatErrorMask, OutcomeReward
    from lightning_opd.data import OPDDataModule, SFTDataModule
    from lightning_opd.interfaces import Environment, Objective, OPDCallback, RolloutEngine, Task, Teacher
    from lightning_opd.models import Lora, StudentConfig
    from lightning_opd.modules import OPDModule, SFTModule
    from lightning_opd.types import Prompt, RolloutBatch, Sampling, Signal, Trajectory

__version__ = "0.1.0"

__all__ = [
    "Environment",
    "FormatErrorMask",
    "Lora",
    "OPDCallback",
    "OPDDataModule",
    "OPDModule",
    "Objective",
    "OutcomeReward",
    "Prompt",
    "RolloutBatch",
    "RolloutEngine",
    "SFTDataModule",
    "SFTModule",
    "Sampling",
    "Signal",
    "StudentConfig",
    "Task",
    "Teacher",
    "Trajectory",
    "__version__",
]

_HOMES = {
    "callbacks": ("FormatErrorMask", "OutcomeReward"),
    "data": ("OPDDataModule", "SFTDataModule"),
    "interfaces": ("Environment", "Objective", "OPDCallback", "RolloutEngine", "Task", "Teacher"),
    "models": ("Lora", "StudentConfig"),
    "modules": ("OPDModule", "SFTModule"),
    "types": ("Prompt", "RolloutBatch", "Sampling", "Signal", "Trajectory"),
}


def __getattr__(name: str) -> object:
    """Import a public name on first use, so that importing the package costs nothing."""
    home = next((home for home, names in _HOMES.items() if name in names), None)
    if home is None:
        msg = f"module 'lightning_opd' has no attribute '{name}'"
        raise AttributeError(msg)
    return getattr(importlib.import_module(f"lightning_opd.{home}"), name)


def __dir__() -> list[str]:
    """List the public names without importing them."""
    return __all__
