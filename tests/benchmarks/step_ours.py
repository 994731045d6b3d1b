"""One side of `step.py`: training steps of this package behind a gate."""

from __future__ import annotations

import gc
import json
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.profilers import Profiler

from lightning_opd.data import OPDDataModule
from lightning_opd.models import Lora, StudentConfig
from lightning_opd.modules import OPDModule
from lightning_opd.objectives import DistributionMatching
from lightning_opd.teachers import AdapterTeacher, LocalTeacher
from lightning_opd.types import Sampling
from tests.benchmarks.gate import Gate, StepGate
from tests.benchmarks.worlds import SamePrompts, Setting

PARTS = ("rollout", "score")


class Parts(Profiler):
    """Tells the gate how long each part of a step took, and where what follows the rollout begins."""

    def __init__(self, gate: Gate, device: str) -> None:
        super().__init__()
        self._gate, self._device, self._started = gate, device, dict.fromkeys(PARTS, 0.0)

    def start(self, action_name: str) -> None:
        if action_name in self._started:
            finish(self._device)
            self._started[action_name] = time.perf_counter()

    def stop(self, action_name: str) -> None:
        if action_name in self._started:
            finish(self._device)
            seconds = time.perf_counter() - self._started[action_name]
            self._gate.parts[action_name] = self._gate.parts.get(action_name, 0.0) + seconds
        if action_name == "rollout":
            self._gate.mark()


def finish(device: str) -> None:
    """Wait until a GPU has done what it was told."""
    if device == "cuda":
        torch.cuda.synchronize()


class WeightsGate(StepGate):
    """Answers the bytes of all weights in memory when training starts, and a GPU's peak in every step.

    Args:
        gate: Where to stop.
        device: Where the run is.
    """

    def __init__(self, gate: Gate, device: str) -> None:
        super().__init__(gate)
        self._device = device

    def figures(self) -> dict[str, float]:
        if self._device != "cuda":
            return {}
        peak = torch.cuda.max_memory_allocated() / 2**20
        torch.cuda.reset_peak_memory_stats()
        return {"peak_mib": peak}

    def on_train_batch_end(self, trainer: L.Trainer, *arguments: Any, **more: Any) -> None:
        finish(self._device)
        super().on_train_batch_end(trainer, *arguments, **more)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.record = {"weight_mib": weight_mib()}
        super().on_train_start(trainer, pl_module)


def weight_mib() -> float:
    """Return the size of all parameters of this process, each storage once."""
    gc.collect()
    storages = {}
    for found in gc.get_objects():
        if issubclass(type(found), torch.nn.Module):  # asking for `__class__` would wake what only warns
            for parameter in found.parameters(recurse=False):
                storage = parameter.untyped_storage()
                storages[storage.data_ptr()] = storage.nbytes()
    return float(sum(storages.values())) / 2**20


def module(setting: Setting) -> OPDModule:
    """Return student and teachers of a setting."""
    folder, dtype = Path(setting.folder), setting.teacher_precision
    student = StudentConfig(str(folder / "student"), dtype=setting.precision, lora=Lora() if setting.lora else None)
    paths = {f"t{i}": str(folder / f"t{i}") for i in range(setting.teachers)}
    return OPDModule(
        student,
        {
            name: AdapterTeacher(path) if setting.adapters else LocalTeacher(path, dtype=dtype)
            for name, path in paths.items()
        },
        DistributionMatching(),
        lambda parameters: (torch.optim.SGD if setting.measures_memory else torch.optim.AdamW)(parameters, lr=1e-6),
    )


def data(setting: Setting) -> OPDDataModule:
    """Return prompts whose responses never end early: their stop token is one that is never drawn."""
    last = setting.vocabulary - 1
    return OPDDataModule(
        SamePrompts(setting.folder, setting.teachers),
        prompts_per_batch=setting.prompts,
        sampling=Sampling(max_new_tokens=setting.new_tokens, stop_token_ids=(last,), vocab_size=last),
        seed=0,
    )


def trainer(setting: Setting, gate: Gate, **more: Any) -> L.Trainer:
    """Return a trainer that does nothing but train."""
    settings: dict[str, Any] = {
        "accelerator": setting.device,
        "devices": 1,
        "precision": setting.trainer_precision,
        "max_steps": setting.steps,
        "accumulate_grad_batches": setting.micro_batches,
        "profiler": Parts(gate, setting.device),
        "callbacks": [WeightsGate(gate, setting.device)],
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "limit_val_batches": 0,
        "num_sanity_val_steps": 0,
        "default_root_dir": setting.folder,
    }
    return L.Trainer(**{**settings, **more})


def main() -> None:
    """Train behind a gate."""
    warnings.simplefilter("ignore")
    setting = Setting(**json.loads(sys.argv[1]))
    gate = Gate(measures_memory=setting.measures_memory)
    trainer(setting, gate).fit(module(setting), data(setting))


if __name__ == "__main__":
    main()
