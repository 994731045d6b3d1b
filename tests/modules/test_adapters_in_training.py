"""Adapters in whole training runs: as the student that goes on, as its teacher, and as what is exported."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_opd.callbacks import ExportHuggingFace
from lightning_opd.models import Lora, StudentConfig, build_student, export_student, load_causal_lm, load_tokenizer
from lightning_opd.modules import OPDModule
from lightning_opd.modules.export import export_checkpoint
from lightning_opd.objectives import DistributionMatching
from tests.models.test_adapters import logits, talkative
from tests.world import Recorder, make_data, make_trainer


@pytest.fixture
def adapters(world: Path, tmp_path: Path) -> Path:
    """Return a folder with an adapter of the student (`start`) and one of a teacher (`math`)."""
    for name, base in (("start", "student"), ("math", "math")):
        model = talkative(build_student(StudentConfig(str(world / base), lora=Lora(rank=2))))
        export_student(model, load_tokenizer(str(world / base)), tmp_path / name, merge=False)
    return tmp_path


def module(adapters: Path, world: Path) -> OPDModule:
    return OPDModule(
        StudentConfig(str(adapters / "start")),
        {"math": str(adapters / "math"), "code": str(world / "code")},
        DistributionMatching(),
        lambda parameters: torch.optim.AdamW(parameters, lr=1e-2),
    )


def run(adapters: Path, world: Path, steps: int, ckpt_path: Path | None = None, *, merge: bool = True) -> OPDModule:
    trained = module(adapters, world)
    export = ExportHuggingFace(str(adapters / f"out{steps}"), merge=merge)
    saver = ModelCheckpoint(adapters, "{step}", every_n_train_steps=1, save_top_k=-1)
    trainer = make_trainer(adapters, export, saver, Recorder(), max_steps=steps, enable_checkpointing=True)
    trainer.fit(trained, make_data(), ckpt_path=ckpt_path)
    return trained


@pytest.mark.parametrize("merge", [True, False])
def test_an_adapter_learns_from_an_adapter_and_is_exported(merge: bool, adapters: Path, world: Path) -> None:
    before = logits(load_causal_lm(str(adapters / "start")))
    trained = run(adapters, world, 2, merge=merge)
    after = logits(trained.loaded_student)
    assert float((after - before).abs().max()) > 1e-3
    assert torch.allclose(logits(load_causal_lm(str(adapters / "out2"))), after, atol=1e-4)
    base = load_causal_lm(str(world / "student")).state_dict()
    for name, value in trained.loaded_student.state_dict().items():
        if "lora_" not in name:
            own = name.removeprefix("base_model.model.").replace(".base_layer", "")
            assert torch.equal(value, base[own]), name


def test_a_resumed_adapter_equals_the_undisturbed_one_and_the_checkpoint_exports_alike(
    adapters: Path, world: Path, tmp_path: Path
) -> None:
    whole = run(adapters, world, 3)
    resumed = run(adapters, world, 3, adapters / "step=1.ckpt")
    for name, value in whole.loaded_student.state_dict().items():
        assert torch.equal(value, resumed.loaded_student.state_dict()[name]), name
    export_checkpoint(module(adapters, world), adapters / "step=3.ckpt", tmp_path / "exported", merge=False)
    got = logits(load_causal_lm(str(tmp_path / "exported")))
    assert torch.allclose(got, logits(whole.loaded_student), atol=1e-5)
