"""A LightningModule around one student: loading, sharding, optimiser and checkpoints."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning as L  # Lightning's own convention
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import nn
from torch.optim import Optimizer
from typing_extensions import override

from lightning_opd.collection.model_contents import contents
from lightning_opd.collection.resume import RecordsSettings, check_resume, is_allowed
from lightning_opd.errors import ConfigError
from lightning_opd.interfaces import StudentForward
from lightning_opd.models import (
    LanguageModel,
    StudentConfig,
    StudentOwner,
    build_student,
    causal_lm,
    check_fits,
    check_rows,
    context_length,
    declared_stop_ids,
    load_tokenizer,
    root_unsharded,
    shard,
)
from lightning_opd.modules import logged_points
from lightning_opd.modules.meshes import data_mesh, sharding_precision
from lightning_opd.modules.non_finite import NonFiniteGuard
from lightning_opd.modules.optimization import (
    OptimizerFactory,
    SchedulerFactory,
    make_optimizer,
    make_scheduler,
    num_states,
    optimization_settings,
    try_optimization,
)
from lightning_opd.modules.run_settings import run_settings
from lightning_opd.modules.schedules import WarmupCosine
from lightning_opd.tokenization.compatibility import check_student_tokenizer
from lightning_opd.tokenization.turn_borders import stop_token_ids
from lightning_opd.types import RolloutBatch

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from transformers import PreTrainedTokenizerBase


class StudentModule(L.LightningModule, StudentOwner):
    """The part that supervised training and distillation share: the student and its checkpoints.

    Checkpoints contain the trainable weights only, and load strictly for these.
    """

    allow_changed: tuple[str, ...] = ()
    strict_loading = False  # frozen weights are not in the checkpoint; `on_load_checkpoint` is strict for the rest

    def __init__(
        self, student: StudentConfig, optimizer: OptimizerFactory, lr_scheduler: SchedulerFactory | None = None
    ) -> None:
        """Remember the settings; models load in `configure_model`."""
        super().__init__()
        self.student_config = student
        self.student: nn.Module | None = None
        self._optimizer, self._lr_scheduler = optimizer, lr_scheduler
        try_optimization(optimizer, lr_scheduler)
        self._language_model: LanguageModel | None = None
        self.non_finite = NonFiniteGuard()
        self._max_steps: int | None = None  # of a resumed run
        self._contents: dict[str, str] | None = None  # of models on the disk

    def configure_student(self) -> nn.Module:
        """Return the student in train mode; a hook for students that are built differently."""
        return build_student(self.student_config)

    @cached_property
    @override
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The student's tokenizer, checked for pad token, stop token and chat template."""
        config = self.student_config
        path = config.tokenizer or config.path
        tokenizer = load_tokenizer(
            str(path),
            revision=None if config.tokenizer else config.revision,
            trust_remote_code=config.trust_remote_code,
            chat_template_kwargs=config.chat_template_kwargs,
            control_tokens_in_text=config.control_tokens_in_text,
        )
        check_student_tokenizer(tokenizer)
        return tokenizer

    @cached_property
    def stop_token_ids(self) -> tuple[int, ...]:
        """Tokens that end a response: the tokenizer's, the model's, and the one that closes the template's turns."""
        config = self.student_config
        if config.path is None:
            return stop_token_ids(self.tokenizer)
        return stop_token_ids(self.tokenizer, declared_stop_ids(config.path, config.declared, revision=config.revision))

    @property
    @override
    def declared_max_length(self) -> int:
        return context_length(self.student_config.declared)

    @property
    @override
    def loaded_student(self) -> nn.Module:
        """The student with its adapter; there from `configure_model` on."""
        if self.student is None:
            msg = "The student is not loaded yet; it is from `configure_model` on."
            raise RuntimeError(msg)
        return self.student

    @property
    def language_model(self) -> LanguageModel:
        """The student's states and head."""
        if self._language_model is None:
            msg = "The student is not loaded yet; it is from `configure_model` on."
            raise RuntimeError(msg)
        return self._language_model

    @override
    def configure_model(self) -> None:
        if self.student is None:
            self._build_student()
            self._shard_student()

    def _build_student(self) -> nn.Module:
        if self._loads_in_shards():
            with sharding_precision(self):
                self.student = build_student(self.student_config, self.data_mesh())
        else:
            self.student = self.configure_student()
        model = causal_lm(self.student)
        check_rows(self.student_config.name, model, len(self.tokenizer))
        with root_unsharded(model):  # the head is probed
            self._language_model = LanguageModel(model, len(self.tokenizer))
        return self.student

    def _loads_in_shards(self) -> bool:
        """Return whether the student is sharded while it is loaded, because nobody wants to see it whole."""
        return self.data_mesh() is not None and type(self).configure_student is StudentModule.configure_student

    def _shard_student(self) -> None:
        mesh = self.data_mesh()
        if mesh is not None:
            with sharding_precision(self):
                shard(self.language_model.model, mesh)

    def data_mesh(self) -> DeviceMesh | None:
        """Return the ranks that share the weights, or None where every rank has all of them.

        Raises:
            ValueError: The strategy would split matrices (tensor parallelism), which is not supported.
        """
        return data_mesh(self)

    def forward_student(self, batch: RolloutBatch) -> StudentForward:
        """Run the student over a micro-batch, with its graph."""
        model = self.language_model
        return StudentForward(model.states(batch.token_ids, batch.attention_mask), model.head(), batch)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return what is optimised, as torch's optimisers take it."""
        return [{"params": [p for p in self.parameters() if p.requires_grad]}]

    def learning_rates(self) -> list[float]:
        """Return the learning rates with which the optimiser would begin; there before any weight is loaded.

        Raises:
            ConfigError: The optimiser refuses its settings.
        """
        optimizer = make_optimizer(self._optimizer, [{"params": [nn.Parameter(torch.zeros(1))]}])
        return [float(group["lr"]) for group in optimizer.param_groups if "lr" in group]

    def num_optimizer_states(self) -> float:
        """Return how many numbers the optimiser keeps for a weight; there before any weight is loaded."""
        return num_states(self._optimizer)

    @override
    def configure_optimizers(self) -> Any:
        optimizer = make_optimizer(self._optimizer, self.parameter_groups())
        if self._lr_scheduler is None:
            return optimizer
        scheduler = make_scheduler(self._lr_scheduler, optimizer)
        if isinstance(scheduler, WarmupCosine):
            num_steps, limit = self.trainer.estimated_stepping_batches, self._max_steps
            scheduler.set_num_steps(num_steps if limit is None or limit < 0 else min(num_steps, limit))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    @override
    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Skip an update that is not finite on any rank; a loss scaler (precision 16-mixed) then halves its scale."""
        precision = self.trainer.precision_plugin
        scaler = precision.scaler if isinstance(precision, MixedPrecision) else None
        scale = 1.0 if scaler is None else scaler.get_scale()
        if self.non_finite.skips(self.parameters(), Path(self.trainer.default_root_dir), scale):
            with_scale = "" if scaler is None else f" (loss scale {scale:g})"
            rank_zero_warn(f"Update {self.trainer.global_step + 1} was not finite and was skipped{with_scale}.")
        if self.non_finite.num_skipped:
            self.log("train/skipped_updates", float(self.non_finite.num_skipped), batch_size=1)

    def resume_settings(self, trainer: L.Trainer, data: object) -> dict[str, object]:
        """Return by name what a resumed run must share with this one; more is known once the prompts are read.

        Args:
            trainer: The one that trains.
            data: Its data module.
        """
        own = optimization_settings(self._optimizer, self._lr_scheduler) | run_settings(self.student_config, trainer)
        return own | (data.resume_settings() if isinstance(data, RecordsSettings) else {})

    def recorded_settings(self, trainer: L.Trainer, data: object) -> dict[str, object]:
        """Return `resume_settings` and what the models that they name held when this was first asked for."""
        settings = self.resume_settings(trainer, data)
        if self._contents is None:
            self._contents = contents(settings)
        return settings | self._contents

    def _own_settings(self) -> dict[str, object]:
        return self.recorded_settings(self.trainer, self.trainer.datamodule)  # type: ignore[attr-defined]  # set by Lightning

    def _check_settings(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another run; begin anew with an optimiser that is allowed to be another one."""
        changed = check_resume(checkpoint.get("settings", {}), self._own_settings(), self.allow_changed)
        for name, (old, new) in changed.items():
            rank_zero_warn(f"Going on with another `{name}`: it was {old}, and is {new}.")
        if any(is_allowed(name, ("model.optimizer", "model.lr_scheduler")) for name in changed):
            if "state_dict" not in checkpoint:
                msg = "A sharded run cannot go on with another optimiser or schedule; set them as they were."
                raise ConfigError(msg)
            checkpoint["optimizer_states"] = checkpoint["lr_schedulers"] = []

    def _trainable_names(self) -> set[str]:
        """Names of everything a checkpoint keeps; tied weights under all their names."""
        return {name for name, p in self.named_parameters(remove_duplicate=False) if p.requires_grad}

    @override
    def on_train_start(self) -> None:
        """Tell the checkpoint callbacks of a resumed run which step is saved already, which Lightning forgets.

        They would save it again in the middle of the next accumulation, without the gradients accumulated so far.
        """
        self._own_settings()  # of the models as they are now
        if self._max_steps is None:
            logged_points.begin(self.trainer)
        for callback in self.trainer.checkpoint_callbacks:
            if isinstance(callback, ModelCheckpoint):
                callback._last_global_step_saved = self.trainer.global_step

    @override
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        kept = self._trainable_names()
        checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k in kept}
        checkpoint[logged_points.KEY] = logged_points.points_to_come(self.trainer, self.late_metrics())
        checkpoint["non_finite"] = self.non_finite.state_dict()
        checkpoint["settings"] = self._own_settings()

    @override
    def on_train_end(self) -> None:
        self._max_steps = None  # another `fit` is a run of its own

    def late_metrics(self) -> dict[str, float]:
        """Return the metrics of an optimiser step that are logged after its checkpoint is saved."""
        return {}

    @override
    def on_validation_start(self) -> None:
        if self._max_steps is not None:  # a validation that was due at the run's last step may begin only below it
            self.trainer.fit_loop.epoch_loop.max_steps = self._max_steps

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self._trainer is not None and self._trainer.state.fn == "fit":  # an export has no trainer
            self._check_settings(checkpoint)
            self.non_finite.load_state_dict(checkpoint.get("non_finite", {}))
            self._max_steps = self.trainer.max_steps
            logged_points.go_on(self.trainer, checkpoint)
        if "state_dict" not in checkpoint:  # a sharding strategy has already loaded it into the shards
            return
        check_fits(checkpoint["state_dict"], self.state_dict(), self._trainable_names())

    def loss_scale(self) -> float:
        """Undo Lightning's averages: gradients of ranks and micro-batches must add up, not average."""
        return float(self.trainer.world_size * self.trainer.accumulate_grad_batches)
