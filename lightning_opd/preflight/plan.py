"""A run planned on paper, with and without each feature: an 8B student, a 32B teacher, eight devices of 80 GB.

`python -c "from lightning_opd.preflight.plan import table; print(table())"` shows the table of
`configs/trainer/README.md`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from lightning_opd.models.estimates import estimate, flops
from lightning_opd.models.shapes import ModelShape, RunShape

AVAILABLE = 80e9

STUDENT = ModelShape(8_190_735_360, 151_936, 4096, 36, 32, 8, 128, 12_288)
"""Qwen3-8B, kept in float32 because all weights are trained."""

TEACHER = ModelShape(32_762_123_264, 151_936, 5120, 64, 64, 8, 128, 25_600, bytes_per_weight=2)
"""Qwen3-32B in the bfloat16 of its checkpoint."""

RUN = RunShape(
    STUDENT,
    (TEACHER,),
    STUDENT.num_weights,
    prompt_tokens=1024,
    response_tokens=7168,
    rollout_rows=32,
    micro_rows=1,
    generated_rows=16,
    scored_rows=4,
    num_devices=8,
    is_sharded=True,
    forward_bytes=2,
    logits_bytes=2**30,
    gradient_checkpointing=True,
)
"""256 responses of up to 7,168 tokens a rollout batch, 32 on each device, one in a micro-batch."""

WITHOUT: Mapping[str, RunShape] = {
    "all features": RUN,
    "without sharding (DDP)": dataclasses.replace(RUN, is_sharded=False),
    "models loaded whole, then sharded": dataclasses.replace(RUN, loads_in_slices=False),
    "weights gathered in float32": dataclasses.replace(RUN, gathers_in_forward_precision=False),
    "teacher in float32": dataclasses.replace(RUN, teachers=(dataclasses.replace(TEACHER, bytes_per_weight=4),)),
    "without gradient checkpointing": dataclasses.replace(RUN, gradient_checkpointing=False),
    "teacher states of prompts kept, too": dataclasses.replace(RUN, keeps_response_states_only=False),
    "all logits of a micro-batch at once": dataclasses.replace(RUN, logits_bytes=2**62),
    "64 responses generated at once": dataclasses.replace(RUN, rollout_rows=64, generated_rows=64),
    "an adapter of rank 64 instead of all weights": dataclasses.replace(
        RUN, student=dataclasses.replace(STUDENT, bytes_per_weight=2), num_trained=174_587_904
    ),
    "four teachers": dataclasses.replace(RUN, teachers=(TEACHER,) * 4),
    "four teachers in turn": dataclasses.replace(RUN, teachers=(TEACHER,) * 4, teachers_in_turn=True),
}


def table() -> str:
    """Return the peak of each stage in GB on each device, as a table in Markdown."""
    stages = ("load", "rollout", "score", "update")
    lines = [f"| run | {' | '.join(stages)} | fits 80 GB |", "|---|" + "---|" * (len(stages) + 1)]
    for name, run in WITHOUT.items():
        peaks = estimate(run).peaks
        sizes = [f"{peaks[stage] / 1e9:.0f}" if stage in peaks else "" for stage in stages]
        lines.append(f"| {name} | {' | '.join(sizes)} | {'yes' if max(peaks.values()) <= AVAILABLE else 'no'} |")
    return "\n".join(lines)


def parts() -> str:
    """Return the bytes of each part of the run with all features in GB, as a table in Markdown."""
    found = estimate(RUN)
    rows = [("always", part, size) for part, size in found.resident.items()]
    rows += [(stage, part, size) for stage, own in found.stages.items() for part, size in own.items() if size]
    lines = ["| when | part | GB |", "|---|---|---|"]
    return "\n".join([*lines, *(f"| {stage} | {part} | {size / 1e9:.1f} |" for stage, part, size in rows)])


def operations() -> str:
    """Return the operations of a step on each device by stage in PFLOP."""
    return ", ".join(f"{stage} {count / 1e15:.1f}" for stage, count in flops(RUN).items())
