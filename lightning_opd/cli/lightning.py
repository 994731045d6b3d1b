"""Lightning's commands: `fit`, `validate`, `test`, `predict`, and our own `preflight`."""

from __future__ import annotations

import contextlib
import signal
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
from jsonargparse import Namespace
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.trainer.states import TrainerFn
from typing_extensions import override

from lightning_opd.callbacks.preemption import Preemption, preempted
from lightning_opd.callbacks.rank_watch import RankWatch
from lightning_opd.cli.console import with_console
from lightning_opd.cli.errors import FAILED_CHECK_EXIT_CODE, SIGNAL_EXIT_CODE, StoppedRun
from lightning_opd.data import OPDDataModule
from lightning_opd.errors import ConfigError
from lightning_opd.modules import OPDModule
from lightning_opd.modules.checkpoint_files import CheckpointFiles
from lightning_opd.modules.resume import check_resumable, prepare_resume
from lightning_opd.options.help import help_text, wanted_help
from lightning_opd.options.messages import BriefParser, explained
from lightning_opd.options.sources import ConfigSources
from lightning_opd.preflight import Preflight, PreflightTrainer
from lightning_opd.preflight.folders import check_writable, outputs
from lightning_opd.preflight.trainer_settings import check_callbacks, check_seed, check_student, check_trainer
from lightning_opd.processes import launcher_id, wait_for_ranks

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from jsonargparse import ArgumentParser


class TrainerParser(BriefParser, LightningArgumentParser):
    """Lightning's parser with short complaints."""


class SaveConfig(SaveConfigCallback):
    """Write the resolved configuration into `trainer.default_root_dir`, as `config.yaml` or `config_COMMAND.yaml`."""

    @override
    def save_config(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        folder = Path(trainer.default_root_dir)
        folder.mkdir(parents=True, exist_ok=True)
        name = "config.yaml" if stage == TrainerFn.FITTING else f"config_{TrainerFn(stage).value}.yaml"
        self.parser.save(self.config, str(folder / name), skip_none=False, overwrite=True, multifile=False)


class OPDCommandLine(LightningCLI):
    """Lightning's command line for one command, with the package's modules as default classes."""

    def __init__(
        self, command: str, words: Sequence[str], instead: Callable[[ArgumentParser], object] | None = None
    ) -> None:
        self._command, self._instead = command, instead
        super().__init__(
            pl.LightningModule,
            pl.LightningDataModule,
            save_config_callback=None if command == "preflight" else SaveConfig,
            save_config_kwargs={"overwrite": True, "save_to_log_dir": False},
            seed_everything_default=0,
            parser_kwargs={"prog": "python -m lightning_opd", "allow_abbrev": False},
            parser_class=TrainerParser,
            trainer_class=PreflightTrainer if command == "preflight" else pl.Trainer,
            subclass_mode_model=True,
            subclass_mode_data=True,
            args=[command, *words],
            trainer_defaults={"callbacks": [Preemption(), RankWatch()]},
            auto_configure_optimizers=False,
        )

    @override
    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]  # not static: no parser for other commands
        return {self._command: super().subcommands()["fit" if self._command == "preflight" else self._command]}

    @override
    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--preflight", type=bool, default=True, help="Whether `fit` checks the run first.")
        parser.set_defaults(
            {"model": {"class_path": "lightning_opd.OPDModule"}, "data": {"class_path": "lightning_opd.OPDDataModule"}}
        )

    @override
    def parse_arguments(self, parser: LightningArgumentParser, args: Sequence[str]) -> None:  # type: ignore[override]  # `run_trainer_command` passes words
        if self._instead is not None:
            self._instead(self._parser(self._command))
            raise SystemExit(0)
        self.config = parser.parse_args(args)
        settings = self.config[self._command].as_dict()
        check_seed(settings.get("seed_everything"))
        check_student(settings.get("model"))

    @override
    def _parse_ckpt_path(self) -> None:
        """Do nothing: the YAML and the command line decide, never a checkpoint's hyper-parameters."""

    @override
    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        trainer = super().instantiate_trainer(**with_console(self._get(self.config_init, "trainer")), **kwargs)
        check_callbacks(trainer)
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:  # the user chose no other
            trainer.strategy.checkpoint_io = CheckpointFiles()
        if self._command == "preflight" or (self._command == "fit" and self._get(self.config, "preflight")):
            trainer.callbacks.insert(0, Preflight())  # type: ignore[attr-defined]  # set by Lightning
        return trainer

    @override
    def _run_subcommand(self, subcommand: str) -> None:
        if subcommand != "preflight":  # where it is one of the findings
            check_writable(outputs(self.trainer))
        with contextlib.ExitStack() as stack:
            for callback in self.trainer.callbacks:  # type: ignore[attr-defined]  # set by Lightning
                if isinstance(callback, Preemption):
                    stack.enter_context(callback.answering(self.trainer))
                if isinstance(callback, RankWatch):
                    stack.enter_context(callback.meeting(self.trainer))
            super()._run_subcommand(subcommand)

    def before_fit(self) -> None:
        """Find the checkpoint to go on from, which `last` and `auto` stand for."""
        self.before_preflight()

    def before_preflight(self) -> None:
        """Do the same as before `fit`."""
        settings = self.config_init[self._command]
        settings.ckpt_path = prepare_resume(self.trainer, self.model, self.datamodule, settings.ckpt_path)

    @override
    def before_instantiate_classes(self) -> None:
        check_trainer(self._get(self.config, "trainer").as_dict())
        check_resumable(self._get(self.config, "ckpt_path"), weights_only=self._get(self.config, "weights_only"))
        strategy = self._get(self.config, "trainer").strategy
        name = strategy.class_path.rpartition(".")[2] if isinstance(strategy, Namespace) else strategy
        if isinstance(name, str) and (name == "FSDPStrategy" or name.startswith("fsdp")):
            msg = (
                f"`trainer.strategy`: FSDP1 (`{name}`) cannot clip by norm and upcasts LoRA silently; "
                "use FSDP2 instead: `--config configs/trainer/fsdp.yaml`."
            )
            raise ConfigError(msg)


def run_trainer_command(command: str, words: Sequence[str]) -> None:
    """Run `fit`, `validate`, `test`, `predict` or `preflight` with the words after it.

    Raises:
        StoppedRun: A signal stopped the training early.
        SystemExit: With 128 + its number, where a signal ended anything else; with 1, where a check failed.
    """
    # Lightning 2.6 asks torch's pytree a question that torch would have worded differently: nothing a user can mend
    warnings.filterwarnings("ignore", message=".isinstance.treespec, LeafSpec", category=FutureWarning)
    if asked := wanted_help(words):
        classes = {"model": OPDModule, "data": OPDDataModule}
        OPDCommandLine(command, [], lambda parser: sys.stdout.write(help_text(parser, command, asked, classes)))
    sources = ConfigSources.read(words)
    try:
        with explained(sources):
            trainer = OPDCommandLine(command, sources.inlined()).trainer
    except SystemExit as error:
        if isinstance(error.__context__, KeyboardInterrupt):  # outside training, where Lightning ends with 1
            error.code = SIGNAL_EXIT_CODE + signal.SIGINT
        raise
    wait_for_ranks(trainer.strategy.launcher)
    if isinstance(trainer, PreflightTrainer) and trainer.has_failed and trainer.is_global_zero:
        raise SystemExit(FAILED_CHECK_EXIT_CODE)
    stopped = preempted(trainer)
    if stopped is None or stopped.received is None or launcher_id():  # which would take another status for a crash
        return
    if not trainer.is_global_zero:
        raise SystemExit(SIGNAL_EXIT_CODE + stopped.received)
    go_on = f"To go on, run the same command with `--ckpt_path {stopped.checkpoint}`."
    raise StoppedRun(stopped.received, go_on)
