"""Trains models of several sizes and saves each run's peak memory beside its parts; run as a script."""

from __future__ import annotations

import gc
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from lightning.pytorch.strategies import ModelParallelStrategy, Strategy

from lightning_opd.models import Lora, StudentConfig, outline
from lightning_opd.models.estimates import estimate
from lightning_opd.modules import OPDModule
from lightning_opd.objectives import DistributionMatching
from lightning_opd.preflight.estimate import run_shape
from lightning_opd.teachers import LocalTeacher
from lightning_opd.types import Sampling
from tests.tiny import save_model
from tests.world import STOPS, Letters, make_data, make_trainer

SIZES = {256: 8, 384: 10, 512: 12}
"""Hidden units → layers."""

NUM_PROMPTS, NUM_SAMPLES, NEW_TOKENS = 4, 2, 24


@dataclass(frozen=True)
class Run:
    """What is trained, and how."""

    sizes: tuple[int, ...]
    lora: Lora | None = None
    checkpointing: bool = False
    precision: Literal["32-true", "bf16-mixed", "bf16-true"] = "32-true"
    num_ranks: int = 1

    @property
    def dtype(self) -> str:
        return "bfloat16" if self.precision == "bf16-true" else "float32"

    @property
    def strategy(self) -> Strategy | str:
        if self.num_ranks == 1:
            return "auto"
        return ModelParallelStrategy(
            data_parallel_size=self.num_ranks,
            tensor_parallel_size=1,
            save_distributed_checkpoint=False,
            process_group_backend="gloo",
        )


LORA = Lora(rank=8)
TWO = (256, 384)
RUNS = {
    "single": {
        "full": Run(tuple(SIZES)),
        "checkpointed": Run((384,), checkpointing=True),
        "lora": Run((384,), LORA),
        "bf16-mixed": Run(TWO, precision="bf16-mixed"),
        "bf16-mixed checkpointed lora": Run((384,), LORA, checkpointing=True, precision="bf16-mixed"),
        "bf16-true": Run(TWO, precision="bf16-true"),
    },
    "sharded": {
        "bf16-mixed": Run((256,), precision="bf16-mixed", num_ranks=2),
        "bf16-mixed lora": Run((256,), LORA, precision="bf16-mixed", num_ranks=2),
    },
}


def memory(field: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def run(model: Path, folder: Path, own: Run) -> dict[str, int]:
    """Train two steps, and return by how many bytes this process grew at most, and what the estimate says."""
    module = OPDModule(
        StudentConfig(str(model), lora=own.lora, gradient_checkpointing=own.checkpointing, dtype=own.dtype),
        {"math": LocalTeacher(str(model), dtype=own.dtype)},
        DistributionMatching(),
        lambda parameters: torch.optim.AdamW(parameters, lr=1e-4),
    )
    data = make_data(
        Letters(teachers=("math",)),
        prompts_per_batch=NUM_PROMPTS * own.num_ranks,
        samples_per_prompt=NUM_SAMPLES,
        sampling=Sampling(max_new_tokens=NEW_TOKENS, stop_token_ids=STOPS[:1]),
    )
    trainer = make_trainer(folder, max_steps=2, precision=own.precision, devices=own.num_ranks, strategy=own.strategy)
    found = estimate(run_shape(trainer, module, data, outline(module.student_config)))
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak begins anew
    before = memory("VmRSS:")
    trainer.fit(module, data)
    return {"measured": memory("VmHWM:") - before, "estimated": found.peak, **found.peaks, **found.resident}


def save(folder: Path, hidden: int, num_layers: int) -> None:
    save_model(
        folder,
        hidden_size=hidden,
        num_hidden_layers=num_layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=hidden // 128,
        head_dim=64,
        intermediate_size=3 * hidden,
    )


def main(folder: Path, kind: str) -> None:
    """Measure the runs of a kind, and save what each rank took.

    What is in bfloat16 is trained with one layer first. oneDNN keeps what it has compiled for each shape of a
    bfloat16 matrix product (16 MB for 256 hidden units), and a page of code is read when it is first run (as much
    again): the memory of a CPU's process, which no layer adds to and no GPU's memory holds.
    """
    torch.set_num_threads(1)
    rank, runs = os.environ.get("LOCAL_RANK"), RUNS[kind]
    if rank is None:  # the second rank is started by the first one's trainer
        for hidden in {hidden for own in runs.values() for hidden in own.sizes}:
            save(folder / f"{hidden}", hidden, SIZES[hidden])
            save(folder / f"{hidden}.1", hidden, 1)
    run(folder / f"{min(SIZES)}.1", folder, next(iter(runs.values())))  # imports
    peaks = {}
    for name, own in runs.items():
        for hidden in own.sizes:
            if own.precision != "32-true":
                run(folder / f"{hidden}.1", folder, own)
            peaks[f"{hidden} {name}"] = run(folder / f"{hidden}", folder, own)
            sys.stderr.write(f"rank {rank or 0}, {hidden} {name}: {peaks[f'{hidden} {name}']}\n")
    (folder / f"peaks_{rank or 0}.json").write_text(json.dumps(peaks), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
