"""The checks inside a run: cheap ones before anything is loaded, each teacher on the first rollout batch."""

from __future__ import annotations

from functools import partial

import lightning as L  # Lightning's own convention
from lightning.pytorch.utilities.exceptions import _TunerExitException  # its own way out of `fit` before training
from typing_extensions import override

from lightning_opd.data import OPDDataModule
from lightning_opd.errors import ConfigError, Problems
from lightning_opd.interfaces import OPDCallback
from lightning_opd.models import Outline, gather_objects
from lightning_opd.modules import OPDModule
from lightning_opd.modules.student import StudentModule
from lightning_opd.preflight.estimate import try_memory
from lightning_opd.preflight.folders import Output, check_disk, check_writable, outputs
from lightning_opd.preflight.models import broken_models, check_models
from lightning_opd.preflight.report import Check, Report, Status
from lightning_opd.preflight.student import check_learning_rates, check_stops, outline_of
from lightning_opd.preflight.tokenizers import QUESTION, compare_tokenizers
from lightning_opd.types import Messages, RolloutBatch, Signal


class Preflight(OPDCallback):
    """Check a run before it costs anything, and refuse it with all that is wrong.

    Before any weight is loaded: that folders can be written and the disk has space for a checkpoint and an export, the
    learning rate, the student's embedding, adapter and stop tokens. On the first rollout batch: that the log-probs of
    student and teachers are finite, and a teacher's not all the same. The command line adds it to `fit` unless
    `--preflight false` is given; the command `preflight` checks more.

    Attributes:
        report: What was found.
        is_rehearsal: Whether everything is checked, the loaded models included, and nothing is trained.
        outputs: What the run that is rehearsed writes; None for what the trainer does.
    """

    def __init__(self) -> None:
        """Start with an empty report."""
        self.report, self.is_rehearsal = Report(), False
        self.outputs: list[Output] | None = None
        self._has_seen_models = False

    @override
    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        report, data = self.report, trainer.datamodule  # type: ignore[attr-defined]  # set by Lightning
        report.run("output folders", lambda: check_writable(outputs(trainer) if self.outputs is None else self.outputs))
        outline = None
        if isinstance(pl_module, StudentModule):
            outline = _check_student(report, trainer, pl_module)
            chosen = data.sampling.stop_token_ids if isinstance(data, OPDDataModule) else ()
            report.run("stop tokens", lambda: check_stops(pl_module, chosen))
        if self.is_rehearsal and isinstance(pl_module, OPDModule):
            _check_tokenizers(report, pl_module, data)
            if report.failed:
                report.add(Check("memory", "not estimated: mend the failed checks first", Status.NOTE))
            elif outline is not None and isinstance(data, OPDDataModule):
                report.run("memory", partial(try_memory, trainer, pl_module, data, outline))
        report.gather_failed()
        if not self.is_rehearsal:
            problems = Problems()
            problems.add(*(check.text for check in report.failed))
            problems.raise_all()

    @override
    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not self.is_rehearsal:
            return
        data = trainer.datamodule  # type: ignore[attr-defined]  # set by Lightning
        self.add_prompts(data)
        if isinstance(pl_module, OPDModule) and isinstance(data, OPDDataModule):
            check_models(self.report, pl_module, data)
        elif isinstance(pl_module, StudentModule):
            self.report.add(Check("student", "loaded"))
        self.report.gather_failed()
        raise _TunerExitException

    @property
    @override
    def signals(self) -> frozenset[Signal]:
        return frozenset(() if self._has_seen_models else {Signal.LOGPROBS})

    @override
    def on_rollout_end(self, trainer: L.Trainer, module: L.LightningModule, rollouts: RolloutBatch) -> None:
        if self._has_seen_models:
            return
        self._has_seen_models = True
        problems = Problems()
        problems.add(*(text for texts in gather_objects(broken_models(rollouts)) for text in texts))
        problems.raise_all()

    def add_prompts(self, data: L.LightningDataModule | None) -> None:
        """Add what the data module found out about its prompts."""
        if isinstance(data, OPDDataModule):
            for split, found in data.prompt_reports.items():
                status = Status.NOTE if found.notes() or found.problems() else Status.PASSED
                values = {
                    "num_prompts": found.num_prompts,
                    "lengths": list(found.lengths),
                    "teachers": dict(found.teachers),
                    "domains": dict(found.domains),
                    "num_long": found.long.num,
                    "num_repeated": found.repeated.num,
                    "num_empty": found.empty.num,
                    "num_null": found.null.num,
                    "num_refused": found.refused.num,
                }
                self.report.add(Check(f"prompts: {split}", str(found), status, values))


def _check_student(report: Report, trainer: L.Trainer, module: StudentModule) -> Outline | None:
    """Add what there is to say of the student, and return it without its weights, where that is possible."""
    num_states = 2.0  # as AdamW has, where nothing is known
    if type(module).configure_optimizers is StudentModule.configure_optimizers:
        report.run("learning rate", lambda: check_learning_rates(module))
        num_states = module.num_optimizer_states()
    try:
        found, check = outline_of(module)
    except ConfigError as error:
        report.fail("student", error)
        return None
    report.add(check)
    if found is not None:
        report.run("disk", lambda: check_disk(trainer, module.student_config, found, num_states))
    return found


def _check_tokenizers(report: Report, module: OPDModule, data: object) -> None:
    chats: dict[str, Messages] = {}
    if isinstance(data, OPDDataModule):
        try:
            for prompt in data.task.prompts("train"):
                chats.setdefault(prompt.teacher, prompt.messages)
        except ConfigError as error:
            report.fail("settings and data", error)
    for name, teacher in module.teachers.distinct.items():
        compare = partial(compare_tokenizers, name, teacher, module.tokenizer, chats.get(name, (QUESTION,)))
        report.run(f"{name}: vocabulary", compare)
