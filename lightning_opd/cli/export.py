"""The command `export`: a training checkpoint becomes a Hugging Face folder."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, cast

from lightning_opd.errors import ConfigError, MissingFileError

if TYPE_CHECKING:
    from lightning_opd.modules.student import StudentModule


def export(checkpoint: str, config: str, output: str, merge: bool = True) -> None:
    """Write the student of a training checkpoint as a Hugging Face folder.

    Args:
        checkpoint: File that `fit` saved, such as checkpoints/last.ckpt.
        config: Configuration of that `fit`; it saves one as `config.yaml` in its trainer.default_root_dir.
        output: Folder to write.
        merge: Fold a LoRA adapter into the weights; false writes the adapter alone.
    """
    path = Path(checkpoint)
    if path.is_dir():
        msg = (
            f"`checkpoint` must be one file, got the folder `{checkpoint}` of a sharded checkpoint; gather it first "
            f"with `python -m lightning.pytorch.utilities.consolidate_checkpoint {checkpoint}`."
        )
        raise ConfigError(msg)
    if not path.is_file():
        msg = f"checkpoint `{checkpoint}` does not exist; `fit` saves one as `checkpoints/last.ckpt`."
        raise MissingFileError(msg)

    import torch

    from lightning_opd.models import export_student
    from lightning_opd.modules.student import StudentModule

    module = _build_module(config)
    StudentModule.configure_model(module)  # the student alone: an export needs no teacher
    content = torch.load(path, map_location="cpu", weights_only=True)
    module.on_load_checkpoint(content)
    module.load_state_dict(content["state_dict"], strict=module.strict_loading)
    if module.student is None:  # `configure_model` has just built it
        raise AssertionError
    export_student(module.student, module.tokenizer, output, merge=merge)
    sys.stdout.write(f"student of {checkpoint} written to {output}\n")


def _build_module(config: str) -> StudentModule:
    from lightning_opd.cli.messages import build_from_config
    from lightning_opd.cli.sources import ConfigSources
    from lightning_opd.modules.student import StudentModule

    sources = ConfigSources.read(["--config", config])
    model = sources.sources[0].tree.get("model")
    if not isinstance(model, dict):
        msg = f"`{config}` has no `model`; give the configuration that `fit` ran with."
        raise ConfigError(msg)
    built = build_from_config(StudentModule, "model", model, sources, default="lightning_opd.OPDModule")
    return cast("StudentModule", built)
