"""On-policy distillation: the student learns from its own graded writing."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from lightning_opd.interfaces import Objective, StudentForward, Teacher
from lightning_opd.models import Student
from lightning_opd.modules.records import EvaluationRecords
from lightning_opd.modules.retokenized import check_retokenized_teachers
from lightning_opd.modules.student import OptimizerFactory, SchedulerFactory, StudentModule
from lightning_opd.objectives import DistributionMatching
from lightning_opd.teachers import LocalTeacher, TeacherPool
from lightning_opd.tokenization.compatibility import check_same_vocabulary
from lightning_opd.types import LossTerms, RolloutBatch, TeacherScores


class OPDModule(StudentModule):
    """Distil one teacher per prompt into a student, on the student's own responses.

    `training_step` is the road and stays as it is; a subclass overrides a hook:
    `configure_student`, `compute_advantages`, `compute_loss`, `log_terms`.

    Args:
        student: The model to train.
        teachers: Name → teacher, or name → path of a model (a `LocalTeacher`). Prompts are routed
            by name. May be empty where nothing is trained.
        objective: Turns grades into a loss.
        optimizer: Makes the optimiser from the trainable parameters.
        lr_scheduler: Makes a learning-rate schedule, stepped after every optimiser step.

    Example:
        >>> module = OPDModule(Student("runs/base"), teachers={"math": "runs/math", "code": "runs/code"})
        >>> module.teachers.names
        ('code', 'math')
    """

    def __init__(
        self,
        student: Student,
        teachers: dict[str, str | Teacher] | None = None,
        objective: Objective = DistributionMatching(),  # frozen, hence safe to share
        optimizer: OptimizerFactory = lambda parameters: torch.optim.AdamW(parameters, lr=1e-5),
        lr_scheduler: SchedulerFactory | None = None,
    ) -> None:
        """Remember the settings; models load in `configure_model`."""
        super().__init__(student, optimizer, lr_scheduler)
        named = {k: LocalTeacher(v) if isinstance(v, str) else v for k, v in (teachers or {}).items() if v is not None}
        self.teachers = TeacherPool(named)
        self.objective = objective
        self._sums: dict[str, Tensor] = {}
        self._records = EvaluationRecords()
        self._update_started = self._update_seconds = 0.0

    # --- hooks -----------------------------------------------------------------------------------

    def compute_advantages(self, batch: RolloutBatch, student: StudentForward) -> Float[Tensor, "batch time"]:
        """Return the detached factor of each token's log-prob gradient; row-local terms only."""
        return self.objective.advantages(batch, student)

    def compute_loss(
        self, batch: RolloutBatch, student: StudentForward, advantages: Float[Tensor, "batch time"]
    ) -> LossTerms:
        """Return the micro-batch's loss, divided by the global denominator, and what to log."""
        return self.objective.loss(batch, student, advantages, self.teachers.heads())

    def log_terms(self, terms: LossTerms) -> None:
        """Add a micro-batch's metrics to the step's; `training_step` logs their quotients once per step."""
        self._add({f"train/{name}": pair for name, pair in terms.metrics.items()})

    # --- the road --------------------------------------------------------------------------------

    @override
    def configure_model(self) -> None:
        if self.student is not None:
            return
        super().configure_model()
        for name, teacher in self.teachers.distinct.items():
            tokenizer = teacher.tokenizer()
            if tokenizer is not None:
                check_same_vocabulary(self.tokenizer, tokenizer, name)
            teacher.introduce(self.tokenizer)
        if self.trainer.state.fn == "fit":
            check_retokenized_teachers(self.objective, self.teachers.distinct)
        self.teachers.setup(self.trainer.strategy.root_device, self.data_mesh())

    @torch.no_grad()
    def score(self, batch: RolloutBatch) -> TeacherScores:
        """Let every teacher grade its own rows of a window."""
        return self.teachers.score(batch, self.objective.requires)

    @override
    def on_train_batch_start(self, batch: RolloutBatch, batch_idx: int) -> None:
        self.trainer.profiler.start("update")  # type: ignore[attr-defined]  # set by Lightning at run time
        self._update_started = time.perf_counter()

    @override
    def training_step(self, batch: RolloutBatch, batch_idx: int) -> Tensor:
        student = self.forward_student(batch)
        advantages = self.compute_advantages(batch, student)
        terms = self.compute_loss(batch, student, advantages)
        loss = terms.loss.detach().to(torch.float64)
        self._add({"train/loss": (loss, loss.new_tensor(1 / self._micro_batches()))})
        self._add(batch.metrics)
        self.log_terms(terms)
        if not self.trainer.fit_loop._should_accumulate():  # Lightning's own word on the step
            self._log_step(len(batch))
        return terms.loss * self.loss_scale()

    def _micro_batches(self) -> int:
        return self.trainer.world_size * self.trainer.accumulate_grad_batches

    @override
    def on_train_batch_end(self, outputs: object, batch: RolloutBatch, batch_idx: int) -> None:
        self.trainer.profiler.stop("update")  # type: ignore[attr-defined]  # set by Lightning at run time
        self._update_seconds += time.perf_counter() - self._update_started
        if not self.trainer.fit_loop._should_accumulate():  # Lightning's own word on the step
            self.log("time/update", self._update_seconds, batch_size=len(batch))
            self._update_seconds = 0.0

    def _add(self, metrics: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        for name, pair in metrics.items():
            both = torch.stack([x.detach().to(torch.float64) for x in pair])
            self._sums[name] = self._sums[name] + both if name in self._sums else both

    def _log_step(self, batch_size: int) -> None:
        """Reduce every metric of the optimiser step over the ranks at once, and log the quotients."""
        names = sorted(self._sums)
        sums = self.data_parallel_sum(torch.stack([self._sums[name] for name in names]))
        self._sums.clear()
        values = {name: value / count for name, (value, count) in zip(names, sums, strict=True) if count > 0}
        self.log_dict(values, batch_size=batch_size)
        for name in ("train/teacher_kl", "train/reward"):
            if name in values:
                self.log(name.removeprefix("train/"), values[name], prog_bar=True, logger=False, batch_size=batch_size)

    # --- evaluation ------------------------------------------------------------------------------

    @override
    def on_validation_epoch_start(self) -> None:
        self._records.clear()

    @override
    def validation_step(self, batch: RolloutBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._records.add(batch)

    @override
    def on_validation_epoch_end(self) -> None:
        records = self._records.gather()
        for name, value in records.means().items():
            self.log(f"val/{name}", value, prog_bar=name == "outcome", batch_size=len(records), sync_dist=True)

    @override
    def on_test_epoch_start(self) -> None:
        self._records.clear()

    @override
    def test_step(self, batch: RolloutBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._records.add(batch)

    @override
    def on_test_epoch_end(self) -> None:
        records = self._records.gather()
        for name, value in records.means(by_mode=True).items():
            self.log(f"test/{name}", value, batch_size=len(records), sync_dist=True)
        if self.trainer.is_global_zero:
            records.write_scores(Path(self.trainer.default_root_dir) / "scores.json", self.student_config.name)

    @override
    def on_predict_epoch_start(self) -> None:
        self._records.clear()

    @override
    def predict_step(self, batch: RolloutBatch, batch_idx: int, dataloader_idx: int = 0) -> list[dict[str, object]]:
        return self._records.add(batch)

    @override
    def on_predict_epoch_end(self) -> None:
        records = self._records.gather()
        if self.trainer.is_global_zero:
            records.write_predictions(Path(self.trainer.default_root_dir) / "predictions.jsonl")

    @override
    def teardown(self, stage: str) -> None:
        if stage == "fit":
            self._sums.clear()
