"""Loads, shards and trains on two processes and saves what was seen; run as a script by each of them."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import lightning as L
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from lightning.pytorch.strategies import ModelParallelStrategy
from torch import nn
from torch.distributed.device_mesh import init_device_mesh

from lightning_opd.models import LoadSettings, Lora, frozen, gather_objects, load_sharded, shard
from lightning_opd.modules import OPDModule
from lightning_opd.objectives import DistributionMatching
from lightning_opd.teachers import LocalTeacher
from tests.flash_attention import FlashStudent, FlashTeacher, flash_installed
from tests.world import Recorder, make_data, make_module, make_trainer, whole


def memory(field: str) -> int:
    """Return a line of this process's memory in bytes."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def growth(load: Any) -> tuple[nn.Module, int]:
    """Return what a function loads, and by how many bytes this process's memory grew at most."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak begins anew
    before = memory("VmRSS:")
    model: nn.Module = load()
    return model, memory("VmHWM:") - before


def loaded(folder: Path) -> dict[str, Any]:
    """Load a large model in slices, and as a whole."""
    mesh = init_device_mesh("cpu", (2,))
    settings = LoadSettings(str(folder))
    model, in_slices = growth(lambda: load_sharded(settings, mesh, frozen))
    mine = {name: whole(p) for name, p in model.named_parameters()}
    del model

    def load() -> nn.Module:
        model = settings.load()
        shard(model, mesh)
        return model

    expected, as_a_whole = growth(load)
    same = all(torch.equal(mine[name], whole(p)) for name, p in expected.named_parameters())
    return {"is_same": gather_objects(same), "growth": gather_objects([in_slices, as_a_whole])}


def trained(
    world: Path, out: Path, precision: str, *, is_alone: bool, packs: bool = False, lora: Lora | None = None
) -> dict[str, Any]:
    """Train two steps, on packed rows or on padded ones, all weights or an adapter."""
    strategy = ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1, save_distributed_checkpoint=False)
    L.seed_everything(0, verbose=False)
    record = Recorder()
    trainer = make_trainer(
        out.parent,
        record,
        devices=1 if is_alone else 2,
        strategy="auto" if is_alone else strategy,
        precision=precision,
        inference_mode=False,
    )
    student, teacher = (FlashStudent, FlashTeacher) if packs else (OPDModule, LocalTeacher)
    dtype = "bfloat16" if precision == "bf16-true" else "float32"
    budget = {"math": teacher(str(world / "math"), dtype=dtype, max_tokens_per_forward=40)}
    module = make_module(world, DistributionMatching(), dtype, budget, student, lora=lora)  # unequally many forwards
    with flash_installed():
        trainer.fit(module, make_data())
    return {"gradients": record.gradients, "logged": record.logged}


def main(world: Path, large: Path, out: Path, mode: str) -> None:
    """Save what was seen.

    Args:
        world: Where a student and its teachers lie.
        large: Folder of a model of some 200 MB.
        out: Where to save.
        mode: "alone", or "together" for one of two processes.
    """
    torch.set_num_threads(1)
    runs = {p: trained(world, out, p, is_alone=mode == "alone") for p in ("32-true", "bf16-mixed")}
    runs["packed"] = trained(world, out, "32-true", is_alone=mode == "alone", packs=True)
    runs["adapter"] = trained(world, out, "bf16-true", is_alone=mode == "alone", lora=Lora(rank=2))
    results = {"runs": runs, "loaded": {} if mode == "alone" else loaded(large)}
    if os.environ.get("LOCAL_RANK", "0") == "0":
        torch.save(results, out)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4])
