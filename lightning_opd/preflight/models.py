"""The loaded models on one small rollout batch: the student as its own teacher, and each teacher's log-probs."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from lightning_opd.collection import Collector
from lightning_opd.collection.proof import FirstBatchProof, forward_precision
from lightning_opd.data import OPDDataModule
from lightning_opd.errors import ConfigError
from lightning_opd.models import evaluating
from lightning_opd.modules import OPDModule
from lightning_opd.preflight.report import Check, Report, Status
from lightning_opd.teachers import LocalTeacher, TeacherPool
from lightning_opd.types import Prompt, PromptBatch, RolloutBatch, Signal

PROMPTS_PER_TEACHER = 2
MAX_NEW_TOKENS = 64

TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 1e-2}
"""Largest KL from the student to itself in nats per token that rounding explains, by the precision of the forward."""

BROKEN_STUDENT = "The student's log-probs are not finite: its weights hold NaN or infinity. Use another checkpoint."

MIN_TOKENS = 8
"""Fewer log-probs say nothing about how they are spread."""


def check_models(report: Report, module: OPDModule, data: OPDDataModule) -> None:
    """Add what one small rollout batch says about the models; every rank must call it, and generates the same.

    Args:
        report: Gets the checks.
        module: With its loaded student and teachers.
        data: Connected to it.
    """
    collector = _small(data.collector)
    prompts = _first_of_each_teacher(data.fitting_prompts("train"), module.teachers.names)
    batch = PromptBatch(prompts, range(len(prompts)))
    with evaluating(module.language_model.model):
        report.run("rollouts and scores", lambda: check_rollouts(collector, batch))
        if len(module.teachers):
            report.run("student as teacher", lambda: check_self_distillation(collector, module, batch))


def check_self_distillation(collector: Collector, module: OPDModule, batch: PromptBatch) -> Check:
    """Let the student be its own teacher: on every step from the prompt to the loss both must say the same.

    Raises:
        ConfigError: The KL from the student to itself is not zero, or no number.
    """
    own = LocalTeacher(module.student_config.name)
    own.adopt(module.language_model, module.data_mesh())
    learner = dataclasses.replace(
        collector.learner, teachers=TeacherPool(dict.fromkeys(module.teachers.names, own)), reference=None
    )
    collector.proof.is_done = True  # another check's
    rollouts = _collect(dataclasses.replace(collector, learner=learner), batch)
    with collector.stage("preflight"):
        ours = learner.forward_student(rollouts)
        difference = torch.where(rollouts.response_mask, ours.logprobs - rollouts.teacher_logprobs, 0.0)
        kl = float(difference.double().sum() / rollouts.response_mask.sum().clamp(min=1))
        logged = learner.objective.loss(rollouts, ours).metrics.get("teacher_kl")
        dtype = forward_precision(learner, rollouts)
    if logged is not None:
        kl = max(kl, float(logged[0] / logged[1].clamp(min=1)), key=abs)
    tolerance = TOLERANCES[dtype]
    if not abs(kl) <= tolerance:
        msg = (
            f"The student as its own teacher has a KL of {kl:.2g} nats per token, expected 0 (up to {tolerance:g} in "
            f"{str(dtype).removeprefix('torch.')}): scoring and training do not compute the same log-probs. A student "
            "with weights that are not finite, or an objective or attention of your own, would explain it."
        )
        raise ConfigError(msg)
    text = f"KL {abs(kl):.1g} nats per token, from the prompt to the loss (up to {tolerance:g} allowed)"
    return Check("student as teacher", text, values={"kl": kl, "tolerance": tolerance})


def check_rollouts(collector: Collector, batch: PromptBatch) -> Iterator[Check]:
    """Yield what the student generated, and what each teacher said about it.

    Raises:
        ConfigError: The engine and the training forward are not one model, or a teacher cannot score.
    """
    rollouts = _collect(collector, batch)
    with collector.stage("preflight"):
        student = collector.learner.forward_student(rollouts).logprobs
    engine, mask = type(collector.engine).__name__, rollouts.response_mask
    finite = bool(student[mask].isfinite().all())
    agrees = f"{int(mask.sum()):,} tokens; {engine} and the training forward agree"
    text = agrees if finite else BROKEN_STUDENT
    yield Check("rollouts", text, Status.PASSED if finite else Status.FAILED, {"num_tokens": int(mask.sum())})
    for index, name in enumerate(rollouts.teacher_names):
        yield _teacher(name, rollouts, student, rollouts.teacher_ids == index)


def broken_models(rollouts: RolloutBatch) -> list[str]:
    """Return what is wrong with the student's and the teachers' log-probs of a rollout batch."""
    if not rollouts.rollout_logprobs[rollouts.response_mask].isfinite().all():
        return [BROKEN_STUDENT]
    rows = [rollouts.teacher_ids == index for index in range(len(rollouts.teacher_names))]
    found = (
        _problem(name, rollouts.teacher_logprobs[_scored(rollouts, own)])
        for name, own in zip(rollouts.teacher_names, rows, strict=True)
    )
    return [problem for problem in found if problem]


def _teacher(name: str, rollouts: RolloutBatch, student: Tensor, rows: Tensor) -> Check:
    scored, responses = _scored(rollouts, rows), rollouts.response_mask & rows[:, None]
    num_scored, num_tokens = int(scored.sum()), int(responses.sum())
    if not num_tokens:
        return Check(f"{name}: log-probs", "no prompt asks for this teacher: it is loaded for nothing", Status.NOTE)
    logprobs = rollouts.teacher_logprobs[scored]
    kl, aligned = float((student[scored] - logprobs).double().mean()), num_scored / num_tokens
    values = {"kl": kl, "aligned_fraction": aligned, "num_tokens": num_tokens}
    problem = _problem(name, logprobs)
    if problem:
        return Check(f"{name}: log-probs", problem, Status.FAILED, values)
    if not num_scored:
        text = f"none of the student's {num_tokens:,} tokens gets a score: nothing would be learned from this teacher"
        return Check(f"{name}: log-probs", text, Status.FAILED, values)
    text = f"finite; KL {kl:.3g} nats per token; {aligned:.0%} of {num_tokens:,} tokens have a score"
    return Check(f"{name}: log-probs", text, values=values)


def _problem(name: str, logprobs: Tensor) -> str:
    """Return what is wrong with a teacher's log-probs of some tokens; nothing where they may be right."""
    broken = int((~logprobs.isfinite()).sum())
    if broken:
        return (
            f"Teacher `{name}` gives log-probs that are not finite for {broken:,} of {len(logprobs):,} tokens: its "
            "weights hold NaN or infinity, or overflow in its `dtype`. Use another checkpoint, or `dtype: float32`."
        )
    if len(logprobs) < MIN_TOKENS:
        return ""
    level, spread = float(logprobs.mean()), float(logprobs.max() - logprobs.min())
    if level < -1 and spread < 1e-3 * abs(level):
        return (
            f"Teacher `{name}` gives every token the same log-prob {level:.2f} (1 of {round(2.718281828**-level):,} "
            "tokens): it prefers nothing, as a model whose weights are zero. Check its path and its weights."
        )
    return ""


def _scored(rollouts: RolloutBatch, rows: Tensor) -> Tensor:
    return rollouts.response_mask & rollouts.aligned_mask & rows[:, None]


def _small(collector: Collector) -> Collector:
    """Return a collector of short replies by the student itself, with a proof of its own."""
    sampling = collector.sampling
    return dataclasses.replace(
        collector,
        sampling=dataclasses.replace(sampling, max_new_tokens=min(sampling.max_new_tokens, MAX_NEW_TOKENS)),
        samples_per_prompt=min(collector.samples_per_prompt, 2),  # siblings, where something compares them
        updates_per_batch=1,
        off_policy=None,
        on_progress=lambda stage, num_done, num_all: None,
        proof=FirstBatchProof(),
    )


def _collect(collector: Collector, batch: PromptBatch) -> RolloutBatch:
    [rollouts] = collector.collect(batch, 0, 1, [], frozenset({Signal.LOGPROBS}))
    return rollouts


def _first_of_each_teacher(prompts: Sequence[Prompt], names: Sequence[str]) -> list[Prompt]:
    """Return the first few prompts of each teacher, or of all where there is no teacher."""
    if not names:
        return list(prompts[:PROMPTS_PER_TEACHER])
    chosen: dict[str, list[Prompt]] = {name: [] for name in names}
    for prompt in prompts:
        if len(chosen[prompt.teacher]) < PROMPTS_PER_TEACHER:
            chosen[prompt.teacher].append(prompt)
        if all(len(own) == PROMPTS_PER_TEACHER for own in chosen.values()):
            break
    return [prompt for own in chosen.values() for prompt in own]
