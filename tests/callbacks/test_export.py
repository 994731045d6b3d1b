"""A sharded student is written whole, merged or as its adapter alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor

from lightning_opd.callbacks.export import gather_weights
from lightning_opd.models import (
    Lora,
    StudentConfig,
    build_student,
    causal_lm,
    export_student,
    load_causal_lm,
    load_tokenizer,
    shard,
)
from tests.models.test_adapters import logits, talkative
from tests.tiny import save_model


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[DeviceMesh]:
    """One process that shards over itself: every weight is a DTensor, as under more of them."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("lora", "merge"), [(None, True), (Lora(rank=4), True), (Lora(rank=4), False)], ids=str)
def test_a_sharded_student_is_written_whole(
    lora: Lora | None, merge: bool, tied: bool, mesh: DeviceMesh, tmp_path: Path
) -> None:
    folder = save_model(tmp_path / "base", tie_word_embeddings=tied)
    student = talkative(build_student(StudentConfig(str(folder), lora=lora)))
    expected = logits(student)
    shard(causal_lm(student), mesh)
    assert all(isinstance(parameter, DTensor) for parameter in student.parameters())
    weights = gather_weights(student)
    assert weights is not None
    export_student(student, load_tokenizer(str(folder)), tmp_path / "out", merge=merge, weights=weights)
    assert torch.allclose(logits(load_causal_lm(str(tmp_path / "out"))), expected, atol=1e-4)
