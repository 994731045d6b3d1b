"""Writes the student of a training checkpoint as a Hugging Face folder."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from lightning_opd.errors import ConfigError
from lightning_opd.models import export_student
from lightning_opd.modules.checkpoint_files import damage
from lightning_opd.modules.student import StudentModule

if TYPE_CHECKING:
    from pathlib import Path


def check_checkpoint(checkpoint: Path) -> None:
    """Refuse a checkpoint that cannot be exported, before anything is built.

    Raises:
        ConfigError: If it is a folder (sharded) or does not exist.
    """
    if checkpoint.is_dir():
        msg = (
            f"`checkpoint` must be one file, got the folder `{checkpoint}` of a sharded checkpoint; gather it first "
            f"with `python -m lightning.pytorch.utilities.consolidate_checkpoint {checkpoint}`."
        )
        raise ConfigError(msg)
    problem = damage(checkpoint)
    if problem is not None:
        msg = f"checkpoint `{checkpoint}` cannot be read: {problem}. Export an earlier one."
        raise ConfigError(msg)


def export_checkpoint(module: StudentModule, checkpoint: Path, output: Path, *, merge: bool) -> None:
    """Load a checkpoint's weights into a module's student and write that.

    Args:
        module: Built from the configuration of the training, not set up yet.
        checkpoint: File that the training saved.
        output: Folder to write.
        merge: Fold a LoRA adapter into the weights; False writes the adapter alone.

    Raises:
        ConfigError: If the checkpoint is a folder (sharded) or does not exist.
    """
    check_checkpoint(checkpoint)
    StudentModule.configure_model(module)  # the student alone: an export needs no teacher
    content = torch.load(checkpoint, map_location="cpu", weights_only=True)
    module.on_load_checkpoint(content)
    module.load_state_dict(content["state_dict"], strict=module.strict_loading)
    if module.student is None:  # `configure_model` has just built it
        raise AssertionError
    export_student(module.student, module.tokenizer, str(output), merge=merge)
