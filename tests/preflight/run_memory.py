"""Trains models of three sizes and prints each run's peak memory beside its parts; run as a script."""

from __future__ import annotations

import gc
import json
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from lightning_opd.models import Lora, StudentConfig, outline
from lightning_opd.models.estimates import estimate
from lightning_opd.modules import OPDModule
from lightning_opd.objectives import DistributionMatching
from lightning_opd.preflight.estimate import run_shape
from lightning_opd.teachers import LocalTeacher
from lightning_opd.types import Sampling
from tests.tiny import save_model
from tests.world import STOPS, Letters, make_data, make_trainer

SIZES = ((256, 8), (384, 10), (512, 12))
NUM_PROMPTS, NUM_SAMPLES, NEW_TOKENS = 4, 2, 24


def memory(field: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def run(model: Path, folder: Path, *, lora: Lora | None, checkpointing: bool) -> dict[str, int]:
    """Train two steps, and return by how many bytes this process grew at most, and what the estimate says."""
    module = OPDModule(
        StudentConfig(str(model), lora=lora, gradient_checkpointing=checkpointing),
        {"math": LocalTeacher(str(model), dtype="float32")},
        DistributionMatching(),
        lambda parameters: torch.optim.AdamW(parameters, lr=1e-4),
    )
    data = make_data(
        Letters(teachers=("math",)),
        prompts_per_batch=NUM_PROMPTS,
        samples_per_prompt=NUM_SAMPLES,
        sampling=Sampling(max_new_tokens=NEW_TOKENS, stop_token_ids=STOPS[:1]),
    )
    trainer = make_trainer(folder, max_steps=2)
    found = estimate(run_shape(trainer, module, data, outline(module.student_config)))
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak begins anew
    before = memory("VmRSS:")
    trainer.fit(module, data)
    return {"measured": memory("VmHWM:") - before, "estimated": found.peak, **found.peaks, **found.resident}


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    tiny = save_model(folder / "tiny")
    run(tiny, folder, lora=None, checkpointing=False)  # imports
    peaks = {}
    for hidden, layers in SIZES:
        model = save_model(
            folder / str(hidden),
            hidden_size=hidden,
            num_hidden_layers=layers,
            num_attention_heads=hidden // 64,
            num_key_value_heads=hidden // 128,
            head_dim=64,
            intermediate_size=3 * hidden,
        )
        for name, lora, checkpointing in (
            ("full", None, False),
            ("checkpointed", None, True),
            ("lora", Lora(rank=8), False),
        ):
            peaks[f"{hidden} {name}"] = run(model, folder, lora=lora, checkpointing=checkpointing)
            sys.stderr.write(f"{hidden} {name}: {peaks[f'{hidden} {name}']}\n")
    (folder / "peaks.json").write_text(json.dumps(peaks), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
