"""What `validate`, `test` and `predict` measure and write."""

from __future__ import annotations

from abc import ABC
from pathlib import Path

from typing_extensions import override

from lightning_opd.models import StudentConfig
from lightning_opd.modules.optimization import OptimizerFactory, SchedulerFactory
from lightning_opd.modules.records import EvaluationRecords
from lightning_opd.modules.student import StudentModule
from lightning_opd.types import RolloutBatch


class EvaluationModule(StudentModule, ABC):
    """A student whose scored responses are counted: means in validation, `scores.json` and `predictions.jsonl` after.

    Logs `val/…` and `test/…`: reward and format (fraction), response_length (tokens), teacher_kl (nats per token),
    over all prompts and per domain.
    """

    def __init__(
        self, student: StudentConfig, optimizer: OptimizerFactory, lr_scheduler: SchedulerFactory | None = None
    ) -> None:
        """Start without records."""
        super().__init__(student, optimizer, lr_scheduler)
        self._records = EvaluationRecords()

    @override
    def on_validation_epoch_start(self) -> None:
        self._records.reset()

    @override
    def validation_step(self, batch: RolloutBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._records.update(batch)

    @override
    def on_validation_epoch_end(self) -> None:
        records = self._records.compute()
        for name, value in records.means().items():
            self.log(f"val/{name}", value, prog_bar=name == "reward", batch_size=len(records), sync_dist=True)

    @override
    def on_test_epoch_start(self) -> None:
        self._records.reset()

    @override
    def test_step(self, batch: RolloutBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._records.update(batch)

    @override
    def on_test_epoch_end(self) -> None:
        records = self._records.compute()
        for name, value in records.means(by_mode=True).items():
            self.log(f"test/{name}", value, batch_size=len(records), sync_dist=True)
        if self.trainer.is_global_zero:
            records.write_scores(Path(self.trainer.default_root_dir) / "scores.json", self.student_config.name)

    @override
    def on_predict_epoch_start(self) -> None:
        self._records.reset()

    @override
    def predict_step(self, batch: RolloutBatch, batch_idx: int, dataloader_idx: int = 0) -> list[dict[str, object]]:
        return self._records.forward(batch)

    @override
    def on_predict_epoch_end(self) -> None:
        records = self._records.compute()
        if self.trainer.is_global_zero:
            records.write_predictions(Path(self.trainer.default_root_dir) / "predictions.jsonl")
