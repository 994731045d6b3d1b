"""What a run will take: memory by part, the largest micro-batch that fits, and time, before any weight is loaded."""

from __future__ import annotations

import time
from collections.abc import Iterator

import lightning as L  # Lightning's own convention
import torch
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.plugins.precision import HalfPrecision, MixedPrecision
from lightning.pytorch.strategies import ModelParallelStrategy

from lightning_opd.data import OPDDataModule
from lightning_opd.data.limits import rows_within
from lightning_opd.errors import ConfigError
from lightning_opd.interfaces import Task
from lightning_opd.models import Outline, checkpoint_dtype, load_config, torch_dtype
from lightning_opd.models.estimates import estimate, flops, largest_micro_batch
from lightning_opd.models.memory import available_bytes, declared_weights
from lightning_opd.models.prepacking import can_prepack
from lightning_opd.models.shapes import ModelShape, RunShape
from lightning_opd.modules import OPDModule
from lightning_opd.preflight.report import Check, Status, in_bytes
from lightning_opd.rollouts import InProcessEngine
from lightning_opd.teachers import LocalTeacher
from lightning_opd.tokenization.chat import render_prompt
from lightning_opd.types import Signal

MAX_PROMPTS = 64
"""Prompts that are measured for the longest one, evenly spread."""

SIDE = 1024
"""Rows of the matrices that are multiplied to find out how fast the machine is."""


def try_memory(trainer: L.Trainer, module: OPDModule, data: OPDDataModule, outline: Outline) -> Iterator[Check]:
    """Yield what `check_memory` does, or a note where a model of another kind cannot be estimated."""
    try:
        yield from check_memory(trainer, module, data, outline)
    except ConfigError:
        raise
    except Exception as error:  # an architecture whose configuration has other names, or code of its own
        yield Check("memory", f"cannot be estimated ({type(error).__name__}: {error})", Status.NOTE)


def check_memory(trainer: L.Trainer, module: OPDModule, data: OPDDataModule, outline: Outline) -> Iterator[Check]:
    """Yield the memory of each part of a run on one device, whether it fits, and the time of a step.

    Args:
        trainer: The one that trains.
        module: Its student and teachers; nothing is loaded yet.
        data: Its prompts.
        outline: Of the student.
    """
    run = run_shape(trainer, module, data, outline)
    found = estimate(run)
    available = available_bytes() // (
        1 if torch.cuda.is_available() else trainer.num_devices
    )  # one machine's, in common
    for part, size in found.resident.items():
        if size:
            yield Check(f"memory: {part}", in_bytes(size), values={"bytes": size})
    for stage, parts in found.stages.items():
        text = ", ".join(f"{part} {in_bytes(size)}" for part, size in parts.items() if size)
        values = {"bytes": found.peaks[stage], "parts": dict(parts)}
        yield Check(f"memory: {stage}", f"{in_bytes(found.peaks[stage])}, of it for this stage {text}", values=values)
    rows = largest_micro_batch(run, available)
    fits = found.peak <= available
    text = (
        f"estimated {in_bytes(found.peak)} at the peak of {in_bytes(available)} that are free; the largest "
        f"micro-batch that fits has {rows} of {run.rollout_rows} rows of {run.max_tokens:,} tokens, and this run "
        f"takes {run.micro_rows}"
    )
    values = {"bytes": found.peak, "available": available, "largest_micro_batch": rows}
    yield Check("memory", text, Status.PASSED if fits else Status.NOTE, values)
    yield _time(run)


def run_shape(trainer: L.Trainer, module: OPDModule, data: OPDDataModule, outline: Outline) -> RunShape:
    """Return what the memory and time of a run depend on, from its settings and its models' configurations."""
    own = module.student_config
    is_full = outline.num_trained == outline.num_parameters
    saved = torch_dtype(own.dtype) or checkpoint_dtype(outline.model.config) or torch.float32
    kept = torch.promote_types(saved, torch.float32) if is_full and own.dtype is None else saved
    student = ModelShape.of(outline.model.config, outline.num_parameters, kept.itemsize)
    teachers = [t for t in module.teachers.distinct.values() if isinstance(t, LocalTeacher)]
    rows = -(-data.prompts_per_batch * data.samples_per_prompt // trainer.world_size)
    num_micro_batches = trainer.accumulate_grad_batches * data.updates_per_batch
    engine, prompt_tokens, response_tokens = data.engine, _longest_prompt(module, data), _response_tokens(data)
    micro_rows = -(-rows // num_micro_batches)
    if data.max_tokens_per_micro_batch is not None:
        longest = prompt_tokens + response_tokens
        micro_rows = rows_within(data.max_tokens_per_micro_batch, longest, rows // data.updates_per_batch)
    return RunShape(
        student,
        tuple(_shape(teacher) for teacher in teachers),
        outline.num_trained,
        prompt_tokens,
        response_tokens,
        rows,
        micro_rows,
        generated_rows=engine.batch_size if isinstance(engine, InProcessEngine) else 0,
        scored_rows=max((teacher.batch_size for teacher in teachers), default=1),
        num_devices=trainer.world_size,
        is_sharded=isinstance(trainer.strategy, ModelParallelStrategy),
        forward_bytes=min(_forward_bytes(trainer), kept.itemsize),
        keeps_states=Signal.HIDDEN_STATES in module.objective.signals,
        gradient_checkpointing=own.gradient_checkpointing,
        teachers_in_turn=module.teachers.in_turn,
        prepacks=_prepacks(trainer, data, min(_forward_bytes(trainer), kept.itemsize)),
    )


def _prepacks(trainer: L.Trainer, data: OPDDataModule, forward_bytes: int) -> bool:
    """Return whether the student generates on the processor with a copy of its weights in oneDNN's order."""
    is_here = isinstance(data.engine, InProcessEngine) and isinstance(trainer.accelerator, CPUAccelerator)
    return is_here and forward_bytes == torch.float32.itemsize and can_prepack(data.sampling.max_new_tokens)


def _shape(teacher: LocalTeacher) -> ModelShape:
    config = load_config(teacher.path, revision=teacher.revision, trust_remote_code=teacher.trust_remote_code)
    dtype = torch_dtype(teacher.dtype) or checkpoint_dtype(config) or torch.float32
    num_weights = declared_weights(teacher.path, revision=teacher.revision, trust_remote_code=teacher.trust_remote_code)
    return ModelShape.of(config, num_weights, dtype.itemsize)


def _forward_bytes(trainer: L.Trainer) -> int:
    """Return the bytes of a number in the forward, as the trainer's precision sets it."""
    return 2 if isinstance(trainer.precision_plugin, MixedPrecision | HalfPrecision) else 8


def _response_tokens(data: OPDDataModule) -> int:
    """Return the tokens of the longest response: of all turns, where a task has several."""
    if type(data.task).environment is Task.environment:
        return data.sampling.max_new_tokens
    return data.sampling.max_episode_tokens or data.sampling.max_new_tokens * data.sampling.max_turns


def _longest_prompt(module: OPDModule, data: OPDDataModule) -> int:
    """Return the tokens of the longest of some prompts."""
    prompts = data.task.prompts("train")
    step = max(1, len(prompts) // MAX_PROMPTS)
    return max((len(render_prompt(module.tokenizer, prompt.messages)) for prompt in prompts[::step]), default=1)


def _time(run: RunShape) -> Check:
    """Return the time that a step takes at least, from its operations and the machine's own speed."""
    needed, per_second = flops(run), _flops_per_second(run.forward_bytes)
    seconds = {stage: count / per_second for stage, count in needed.items()}
    text = (
        f"at least {sum(seconds.values()):,.3g} s a step for {sum(needed.values()) / 1e12:,.3g} TFLOP at "
        f"{per_second / 1e12:,.3g} TFLOP/s ({', '.join(f'{stage} {value:,.3g} s' for stage, value in seconds.items())})"
        "; generation token by token waits for memory, and takes longer"
    )
    return Check("time", text, values={"flops": needed, "flops_per_second": per_second, "seconds": seconds})


def _flops_per_second(num_bytes: int) -> float:
    """Return how many operations this machine does in a second of matrix products."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if num_bytes == 2 else torch.float32
    matrix = torch.ones(SIDE, SIDE, dtype=dtype, device=device)
    best = float("inf")
    for _ in range(3):
        started = time.perf_counter()
        float((matrix @ matrix)[0, 0])  # waits for the device
        best = min(best, time.perf_counter() - started)
    return float(2 * SIDE**3 / best)
