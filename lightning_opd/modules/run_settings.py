"""Settings of student, trainer and callbacks that decide what a run learns."""

from __future__ import annotations

import lightning as L  # Lightning's own convention
from lightning.pytorch.callbacks import Callback

from lightning_opd.collection.resume import describe
from lightning_opd.interfaces import OPDCallback
from lightning_opd.models import StudentConfig

STUDENT = ("dtype", "chat_template_kwargs", "control_tokens_in_text", "quantization")
TRAINER = ("accumulate_grad_batches", "gradient_clip_val", "precision")


def run_settings(student: StudentConfig, trainer: L.Trainer) -> dict[str, object]:
    """Return by name what a resumed run must share with this one, as far as student and trainer tell it.

    Args:
        student: The one that is trained.
        trainer: The one that trains.
    """
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]  # set by Lightning at run time
    settings = {f"trainer.{name}": getattr(trainer, name) for name in TRAINER}
    settings |= {f"model.student.{name}": describe(getattr(student, name)) for name in STUDENT}
    changing = [callback for callback in callbacks if isinstance(callback, OPDCallback) and callback.changes_rollouts]
    settings["trainer.callbacks"] = {type(callback).__name__: describe(callback) for callback in changing}
    if student.lora is not None:  # its names tell it from a whole student
        settings |= {"model.student.lora": describe(student.lora), "model.student.path": describe(student.path)}
    return settings
