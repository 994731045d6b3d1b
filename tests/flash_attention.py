"""Models, a student and a teacher that attend by flash attention 3 on a CPU."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh

from lightning_opd.models import causal_lm
from lightning_opd.modules import OPDModule
from lightning_opd.teachers import LocalTeacher
from tests import flash_attn_interface

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@contextmanager
def flash_installed() -> Iterator[None]:
    """Let transformers find flash attention 3 for everything inside."""
    from transformers import modeling_flash_attention_utils

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "flash_attn_interface", flash_attn_interface)
        patch.setattr(modeling_flash_attention_utils, "_loaded_implementation", None)
        yield


def attend_by(name: str, model: PreTrainedModel) -> None:
    """Change a loaded model's attention; transformers would refuse flash attention without a GPU."""
    model.config._attn_implementation = name  # transformers' only name for it


class FlashStudent(OPDModule):
    """Its student attends by flash attention."""

    def configure_student(self) -> nn.Module:
        student = super().configure_student()
        attend_by("flash_attention_3", causal_lm(student))
        return student


class FlashTeacher(LocalTeacher):
    """Attends by flash attention."""

    def setup(self, device: torch.device, mesh: DeviceMesh | None = None) -> None:
        super().setup(device, mesh)
        attend_by("flash_attention_3", self._loaded().model)
