"""The command `preflight`: everything that `fit` does before its first step, and a report instead of the training."""

from __future__ import annotations

from pathlib import Path

import lightning as L  # Lightning's own convention
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.profilers import PassThroughProfiler

from lightning_opd.errors import ConfigError
from lightning_opd.preflight.callback import Preflight
from lightning_opd.preflight.folders import outputs
from lightning_opd.preflight.report import FILE_NAME, Check, Status
from lightning_opd.preflight.table import show


class PreflightTrainer(L.Trainer):
    """A trainer that can rehearse `fit`.

    Attributes:
        has_failed: Whether a check of the last preflight failed.
    """

    has_failed = False

    def preflight(
        self,
        model: L.LightningModule,
        datamodule: L.LightningDataModule | None = None,
        ckpt_path: str | None = None,
        weights_only: bool | None = None,
    ) -> None:
        """Check everything that `fit` needs, and train nothing.

        It shows one table and writes `preflight.json` into `trainer.default_root_dir`, and nothing else. The command's
        exit status is 0 where all checks passed, 1 where one failed, 2 where the settings cannot be read.

        Args:
            model: The module to train.
            datamodule: Its data.
            ckpt_path: Checkpoint to go on from, as for `fit`.
            weights_only: Whether that checkpoint holds nothing but tensors, as for `fit`.
        """
        callbacks: list[Callback] = self.callbacks  # type: ignore[has-type]  # set by Lightning
        own = [callback for callback in callbacks if isinstance(callback, Preflight)] or [Preflight()]
        preflight, others = own[0], [callback for callback in callbacks if callback not in own]
        preflight.is_rehearsal = True
        preflight.outputs = outputs(self)
        self.callbacks, self.loggers, self.profiler = [preflight, *others], [], PassThroughProfiler()
        report = preflight.report
        try:
            self.fit(model, datamodule=datamodule, ckpt_path=ckpt_path, weights_only=weights_only)
        except ConfigError as error:
            preflight.add_prompts(datamodule)
            report.fail("settings and data", error)
            report.add(Check("models", "not checked: mend the failed checks first", Status.NOTE))
        except BaseException as error:  # a signal, too
            report.add(Check("preflight", f"stopped before its end ({type(error).__name__})", Status.FAILED))
            raise
        finally:
            self.has_failed = bool(report.failed)
            if self.is_global_zero:
                self._finish(preflight)

    def _finish(self, preflight: Preflight) -> None:
        try:
            preflight.report.write(Path(self.default_root_dir))
        except OSError as error:
            preflight.report.add(Check(FILE_NAME, f"not written: {error}", Status.NOTE))
        show(preflight.report)
