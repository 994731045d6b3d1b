"""The command `export`: a training checkpoint becomes a Hugging Face folder."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import cast

from lightning_opd.errors import ConfigError
from lightning_opd.options.messages import build_from_config
from lightning_opd.options.outputs import check_output
from lightning_opd.options.sources import ConfigSources


def export(checkpoint: str, config: str, output: str, merge: bool = True) -> None:
    """Write the student of a training checkpoint as a Hugging Face folder.

    Args:
        checkpoint: File that `fit` saved, such as checkpoints/last.ckpt.
        config: Configuration of that `fit`; it saves one as `config.yaml` in its trainer.default_root_dir.
        output: Folder to write.
        merge: Fold a LoRA adapter into the weights; false writes the adapter alone.
    """
    from lightning_opd.modules.export import check_checkpoint, export_checkpoint
    from lightning_opd.modules.resume import check_content
    from lightning_opd.modules.student import StudentModule

    check_output(Path(output), "output")
    check_checkpoint(Path(checkpoint))
    check_content(Path(checkpoint))
    sources = ConfigSources.read(["--config", config])
    model = sources.sources[0].tree.get("model")
    if not isinstance(model, dict):
        msg = f"`{config}` has no `model`; give the configuration that `fit` ran with."
        raise ConfigError(msg)
    module = build_from_config(StudentModule, "model", model, sources, default="lightning_opd.OPDModule")
    export_checkpoint(cast("StudentModule", module), Path(checkpoint), Path(output), merge=merge)
    sys.stdout.write(f"student of {checkpoint} written to {output}\n")
