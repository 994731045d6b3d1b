"""How callbacks and data modules find the student that a Lightning module trains."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from torch import nn

from lightning_opd.errors import ConfigTypeError

if TYPE_CHECKING:
    import lightning as L
    from transformers import PreTrainedTokenizerBase


class StudentOwner(ABC):
    """A Lightning module that trains one student."""

    @property
    @abstractmethod
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The student's tokenizer; there before any weight is loaded."""

    @property
    @abstractmethod
    def declared_max_length(self) -> int:
        """Longest sequence in tokens that the student's configuration has positions for."""

    @property
    @abstractmethod
    def loaded_student(self) -> nn.Module:
        """The student with its adapter; there from `configure_model` on."""


def student_owner(module: L.LightningModule) -> StudentOwner:
    """Return the module as the owner of a student.

    Raises:
        TypeError: It owns none.
    """
    if not isinstance(module, StudentOwner):
        msg = f"Expected a module with a student (`OPDModule`, `SFTModule` or a subclass), got {type(module).__name__}."
        raise ConfigTypeError(msg)
    return module
