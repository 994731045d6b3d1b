"""Lightning's verbs: `fit`, `validate`, `test`, `predict`."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import lightning.pytorch as pl
from jsonargparse import Namespace
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from typing_extensions import override

from lightning_opd.cli.errors import UsageError, find_settings_error, message_of
from lightning_opd.cli.mappings import compose_mappings
from lightning_opd.cli.messages import Written, explain
from lightning_opd.cli.sources import read_sources

if TYPE_CHECKING:
    from collections.abc import Sequence

_LIGHTNING = Path(pl.__file__).resolve().parent.parent


class TrainerParser(LightningArgumentParser):
    """A parser whose errors are one or two lines."""

    written = Written()

    @override
    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if not self.exit_on_error:  # a parser inside the parser, whose caller may have an alternative
            super().error(message, ex)
        raise UsageError(explain(message, type(self).written)) from ex


class SaveConfig(SaveConfigCallback):
    """Write the resolved configuration to `trainer.default_root_dir`: `config.yaml` for fit, `VERB.yaml` otherwise."""

    @override
    def save_config(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        folder = Path(trainer.default_root_dir)
        folder.mkdir(parents=True, exist_ok=True)
        name = "config.yaml" if stage == "fit" else f"config_{stage}.yaml"
        self.parser.save(self.config, str(folder / name), skip_none=False, overwrite=True, multifile=False)


class Progress(Callback):
    """Remembers whether a batch was finished: from then on an error is a crash, not a wrong setting."""

    has_begun = False
    """Of the verb that runs in this process."""

    @override
    def on_train_batch_end(self, *args: object) -> None:
        Progress.has_begun = True

    @override
    def on_validation_batch_end(self, trainer: pl.Trainer, *args: object) -> None:
        Progress.has_begun = Progress.has_begun or not trainer.sanity_checking

    @override
    def on_test_batch_end(self, *args: object) -> None:
        Progress.has_begun = True

    @override
    def on_predict_batch_end(self, *args: object) -> None:
        Progress.has_begun = True


class OPDCommandLine(LightningCLI):
    """Lightning's command line with the package's modules as default classes."""

    progress: Progress

    @override
    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.set_defaults(
            {"model": {"class_path": "lightning_opd.OPDModule"}, "data": {"class_path": "lightning_opd.OPDDataModule"}}
        )

    @override
    def parse_arguments(self, parser: LightningArgumentParser, args: Sequence[str]) -> None:  # type: ignore[override]  # `run_trainer_verb` passes words
        self.config = parser.parse_args(args)

    @override
    def _parse_ckpt_path(self) -> None:
        """Do nothing: the YAML and the command line decide, never a checkpoint's hyper-parameters."""

    @override
    def before_instantiate_classes(self) -> None:
        strategy = self._get(self.config, "trainer").strategy
        name = strategy.class_path.rpartition(".")[2] if isinstance(strategy, Namespace) else strategy
        if isinstance(name, str) and (name == "FSDPStrategy" or name.startswith("fsdp")):
            msg = (
                f"`trainer.strategy`: FSDP1 (`{name}`) cannot clip by norm and upcasts LoRA silently; "
                "use FSDP2 instead: `--config configs/trainer/fsdp.yaml`."
            )
            raise UsageError(msg)

    @override
    def instantiate_trainer(self, **kwargs: object) -> pl.Trainer:
        trainer = super().instantiate_trainer(**kwargs)
        self.progress = Progress()
        trainer.callbacks.append(self.progress)  # type: ignore[attr-defined]  # set by its callback connector
        return trainer


def run_trainer_verb(verb: str, words: Sequence[str]) -> None:
    """Run `fit`, `validate`, `test` or `predict`.

    Args:
        verb: Which of them.
        words: Command line after the verb.

    Raises:
        UsageError: If the settings are wrong, found while parsing, building or setting up. A crash raises itself.
    """
    # Lightning 2.6 asks torch's pytree a question that torch would have worded differently: nothing a user can mend
    warnings.filterwarnings("ignore", message=".isinstance.treespec, LeafSpec", category=FutureWarning)
    sources = read_sources(words)
    TrainerParser.written = Written(sources)
    Progress.has_begun = False
    try:
        OPDCommandLine(
            pl.LightningModule,
            pl.LightningDataModule,
            save_config_callback=SaveConfig,
            save_config_kwargs={"overwrite": True, "save_to_log_dir": False},
            seed_everything_default=0,
            parser_kwargs={"prog": "python -m lightning_opd", "allow_abbrev": False},
            parser_class=TrainerParser,
            subclass_mode_model=True,
            subclass_mode_data=True,
            args=[verb, *compose_mappings(words, sources)],
            auto_configure_optimizers=False,
        )
    except Exception as error:
        settings_error = find_settings_error(error, _LIGHTNING)
        if isinstance(error, MisconfigurationException):
            settings_error = error
        if settings_error is None or Progress.has_begun:
            raise
        raise UsageError(message_of(settings_error)) from error
