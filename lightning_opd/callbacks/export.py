"""Exports the student as a Hugging Face folder at the end of training."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import lightning as L  # Lightning's own convention
import torch
from lightning.pytorch.callbacks import Callback
from typing_extensions import override

from lightning_opd.callbacks.preemption import preempted
from lightning_opd.models import export_student, student_owner


class ExportHuggingFace(Callback):
    """Write the trained student, its configuration and tokenizer when training ends.

    Args:
        folder: Where to write; by default `model` in the trainer's `default_root_dir`.
        merge: Merge a LoRA adapter into the weights; False writes the adapter alone.
    """

    def __init__(self, folder: str | None = None, merge: bool = True) -> None:  # a key in YAML
        """Remember where to write."""
        self.folder, self.merge = folder, merge

    @override  # not `on_train_end`: a run resumed after its last step has none
    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.fast_dev_run or preempted(trainer):  # type: ignore[attr-defined]  # set by Lightning at run time
            return
        owner = student_owner(pl_module)
        weights = gather_weights(owner.loaded_student)  # every rank takes part
        if trainer.is_global_zero:
            folder = Path(self.folder or Path(trainer.default_root_dir) / "model")
            export_student(owner.loaded_student, owner.tokenizer, folder, merge=self.merge, weights=weights)
        trainer.strategy.barrier("export")


def gather_weights(student: torch.nn.Module) -> dict[str, torch.Tensor] | None:
    """Return the whole state dict on the CPU if the weights are sharded, else None."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
    from torch.distributed.tensor import DTensor

    if not any(isinstance(parameter, DTensor) for parameter in student.parameters()):
        return None
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    return cast("dict[str, torch.Tensor]", get_model_state_dict(student, options=options))
