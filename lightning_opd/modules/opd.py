"""On-policy distillation: the student learns from its own scored text."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import lightning as L  # Lightning's own convention
import torch
from jaxtyping import Float
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor, nn
from torch.optim import Optimizer
from typing_extensions import override

from lightning_opd.collection import Learner, RolloutProducer
from lightning_opd.collection.resume import describe
from lightning_opd.errors import ConfigError
from lightning_opd.interfaces import (
    Objective,
    ReadsOwnTokens,
    ReadsStudentTokens,
    ScoresLater,
    StudentForward,
    Teacher,
)
from lightning_opd.models import StudentConfig, remove_dropout, shard_whole
from lightning_opd.models.shared_base import SharedBases
from lightning_opd.modules.critic import Critic, value_loss
from lightning_opd.modules.cross_tokenizer import check_cross_tokenizer_teachers
from lightning_opd.modules.evaluation import EvaluationModule
from lightning_opd.modules.meshes import sharding_precision
from lightning_opd.modules.optimization import OptimizerFactory, SchedulerFactory
from lightning_opd.modules.quotients import Quotients
from lightning_opd.objectives import DistributionMatching
from lightning_opd.teachers import AdapterExpert, TeacherPool, attach, teacher_of, tell_student
from lightning_opd.teachers.adapters import JoinsBase
from lightning_opd.tokenization.compatibility import check_same_vocabulary
from lightning_opd.types import LossTerms, RolloutBatch, Signal


class OPDModule(EvaluationModule):
    """Distil one teacher per prompt into a student, on the student's own responses.

    `training_step` is the training step and stays as it is; a subclass overrides a hook:
    `configure_student`, `compute_advantages`, `compute_loss`, `log_terms`, `more_signals`.

    Args:
        student: The model to train.
        teachers: Name → teacher, or name → path of a model (a `LocalTeacher`) or of a LoRA adapter (an
            `AdapterTeacher`, also as `{adapter: loras/math}`): all adapters lie on one base in memory, the student's
            own if it is the same. Prompts are routed by name. May be empty where nothing is trained.
        objective: Turns scores into a loss.
        optimizer: Makes the optimiser from the trainable parameters.
        lr_scheduler: Makes a learning-rate schedule, stepped after every optimiser step.
        critic: Learns the value that a policy gradient subtracts from its returns; null for none.
        reference: A model, or its path, that reward extrapolation starts from; null for none.
        allow_changed: Settings that a run may change where it goes on from a checkpoint, for example
            `model.optimizer` (it then begins anew, with its schedule) or `data.prompts_per_batch`.
        teachers_in_turn: Let teachers that do not fit on the device together wait in the machine's memory; each comes
            to the device once in a rollout batch, to score. Adapters on a base in common stay there.

    Example:
        >>> module = OPDModule(StudentConfig("runs/base"), teachers={"math": "runs/math", "code": "runs/code"})
        >>> module.teachers.names
        ('code', 'math')
    """

    def __init__(
        self,
        student: StudentConfig,
        teachers: Mapping[str, str | AdapterExpert | Teacher] | None = None,
        objective: Objective = DistributionMatching(),  # frozen, hence safe to share
        optimizer: OptimizerFactory = lambda parameters: torch.optim.AdamW(parameters, lr=1e-5),
        lr_scheduler: SchedulerFactory | None = None,
        critic: Critic | None = None,
        reference: str | AdapterExpert | Teacher | None = None,
        allow_changed: Sequence[str] = (),
        teachers_in_turn: bool = False,  # a key in YAML
    ) -> None:
        """Remember the settings; models load in `configure_model`."""
        if student.lora is not None and student.lora.dropout > 0:
            msg = (
                f"`student.lora.dropout` must be 0 while distilling, got {student.lora.dropout}: the student would be "
                "trained on other log-probs than it generates with. Set it to 0."
            )
            raise ConfigError(msg)
        super().__init__(student, optimizer, lr_scheduler)
        self.allow_changed = tuple(allow_changed)
        self.critic = critic
        self.reference = None if reference is None else teacher_of(reference)
        named = {k: teacher_of(v) for k, v in (teachers or {}).items() if v is not None}
        self.teachers = TeacherPool(named, in_turn=teachers_in_turn)
        own = [] if self.reference is None else [self.reference]
        tell_student([*self.teachers.distinct.values(), *own], student)
        self.objective = objective
        self._step_metrics = Quotients()
        self._metric_stage = "train"
        self._update_started = self._update_seconds = 0.0
        self._response_ends: tuple[int, ...] = ()

    def compute_advantages(self, batch: RolloutBatch, student: StudentForward) -> Float[Tensor, "batch time"]:
        """Return the detached factor of each token's log-prob gradient; row-local terms only."""
        return self.objective.advantages(batch, student)

    def compute_loss(
        self, batch: RolloutBatch, student: StudentForward, advantages: Float[Tensor, "batch time"]
    ) -> LossTerms:
        """Return the micro-batch's loss, divided by the global denominator, and what to log."""
        return self.objective.loss(batch, student, advantages)

    def log_terms(self, terms: LossTerms) -> None:
        """Add a micro-batch's metrics to the step's; `training_step` logs their quotients once per step."""
        self._step_metrics.update({f"{self._metric_stage}/{name}": pair for name, pair in terms.metrics.items()})

    @override
    def setup(self, stage: str) -> None:
        """Hand the data module what it produces rollouts with, so that wrong settings are found before any loading."""
        data = self.trainer.datamodule  # type: ignore[attr-defined]  # set by Lightning at run time
        if isinstance(data, RolloutProducer):
            self._response_ends = data.connect(self.learner())

    def learner(self) -> Learner:
        """Return the student, its teachers and the objective; models load in `configure_model`."""
        return Learner(
            self.tokenizer,
            self.stop_token_ids,
            self.declared_max_length,
            lambda: self.loaded_student,
            lambda: self.language_model,
            self.forward_student,
            self.teachers,
            self.objective,
            self.reference,
            self.critic,
            self.more_signals,
        )

    @property
    def more_signals(self) -> frozenset[Signal]:
        """What a subclass's hooks read of the teachers' scores, beside what the objective asks for.

        By default the log-probs, in case they do; without a reader these are not computed.
        """
        return frozenset() if type(self) is OPDModule else frozenset({Signal.LOGPROBS})

    @override
    def configure_model(self) -> None:
        if self.student is not None:
            return
        removed = remove_dropout(self._build_student())
        if removed:
            rates = ", ".join(f"{name} {rate:g}" for name, rate in removed.items())
            rank_zero_info(f"Dropout of the student is off while distilling ({rates}).")
        own = {} if self.reference is None else {"reference": self.reference}
        teachers = {**self.teachers.distinct, **own}
        attach(teachers.values(), SharedBases(self.loaded_student, self.student_config))
        self._shard_student()
        for name, teacher in teachers.items():
            if isinstance(teacher, ReadsStudentTokens):
                check_same_vocabulary(self.tokenizer, teacher.tokenizer(), name)
            if isinstance(teacher, ReadsOwnTokens):
                teacher.set_student_tokenizer(self.tokenizer, self._ends_of_turn())
        if self.trainer.state.fn == "fit":
            check_cross_tokenizer_teachers(self.objective, self.teachers.distinct)
        mesh = self.data_mesh()
        with sharding_precision(self):
            self.teachers.setup(self.trainer.strategy.root_device, mesh)
            if self.reference is not None:
                self.reference.setup(self.trainer.strategy.root_device, mesh)
        if self.critic is not None:
            weight = next(self.language_model.model.parameters())
            self.critic.build(
                self.language_model.width, torch.promote_types(weight.dtype, torch.float32), weight.device
            )
            if mesh is not None:
                shard_whole(self.critic, mesh)

    @override
    def _loads_in_shards(self) -> bool:
        reference = () if self.reference is None else (self.reference,)
        others = (*self.teachers.distinct.values(), *reference)  # those that join a base need it whole
        return super()._loads_in_shards() and not any(isinstance(teacher, JoinsBase) for teacher in others)

    def _ends_of_turn(self) -> tuple[int, ...]:
        """Return the tokens that end a reply as such; text at which a run lets replies end stays text."""
        control = (i for i in self._response_ends if i in self.tokenizer.added_tokens_decoder)
        return tuple(dict.fromkeys([*self.stop_token_ids, *control]))

    @override
    def resume_settings(self, trainer: L.Trainer, data: object) -> dict[str, object]:
        own: dict[str, object] = {
            "model.objective": self.objective,
            "model.critic": self.critic,
            "model.reference": self.reference,
        }
        own |= {"model.teachers": {name: self.teachers[name] for name in self.teachers.given}}
        return {**super().resume_settings(trainer, data), **{name: describe(value) for name, value in own.items()}}

    @override
    def parameter_groups(self) -> list[dict[str, Any]]:
        [everything] = super().parameter_groups()
        if self.critic is None:
            return [everything]
        own = list(self.critic.parameters())
        others = [p for p in everything["params"] if all(p is not q for q in own)]
        return [{"params": others}, {"params": own, "lr": self.critic.lr}]

    @override
    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        if self.critic is None:
            super().configure_gradient_clipping(optimizer, gradient_clip_val, gradient_clip_algorithm)
            return
        own = list(self.critic.parameters())
        nn.utils.clip_grad_norm_(own, self.critic.max_norm)
        kept = [p.grad for p in own]
        for parameter in own:  # out of sight while Lightning clips the student
            parameter.grad = None
        super().configure_gradient_clipping(optimizer, gradient_clip_val, gradient_clip_algorithm)
        for parameter, gradient in zip(own, kept, strict=True):
            parameter.grad = gradient

    @override
    def on_train_batch_start(self, batch: RolloutBatch, batch_idx: int) -> None:
        if not self._update_seconds:  # a new update: Lightning would log what only the last one has measured once more
            for name, result in self.trainer.fit_loop.epoch_loop._results.items():
                if name.startswith("training_step.") and not result.meta.on_epoch:
                    result.reset()
        self.trainer.profiler.start("update")  # type: ignore[attr-defined]  # set by Lightning at run time
        self._update_started = time.perf_counter()

    @override
    def training_step(self, batch: RolloutBatch, batch_idx: int) -> Tensor:
        self._metric_stage = "off_policy" if batch.is_off_policy else "train"
        student = self.forward_student(batch)
        batch.kl = self.objective.state_kl(batch, student)
        critic_loss = self._fit_critic(batch, student)
        advantages = self.compute_advantages(batch, student)
        terms = self.compute_loss(batch, student, advantages)
        self.non_finite.note(terms.loss, batch)
        loss = terms.loss.detach().to(torch.float64)
        self._step_metrics.update({"train/loss": (loss, loss.new_tensor(1 / self._micro_batches()))})
        self._step_metrics.update(batch.metrics)
        self.log_terms(terms)
        if not self.trainer.fit_loop._should_accumulate():  # Lightning's own word on the step
            self._log_step(len(batch))
        return (terms.loss + critic_loss) * self.loss_scale()

    def _fit_critic(self, batch: RolloutBatch, student: StudentForward) -> Tensor | float:
        """Return the critic's loss, and give the batch its values as baselines."""
        if self.critic is None:
            return 0.0
        values = self.critic(student.hidden_states)
        if batch.baselines is None:  # of a rollout batch with one update: nothing was updated since it was written
            batch.baselines = torch.where(batch.response_mask, values.detach(), 0.0).to(batch.rollout_logprobs.dtype)
        targets = self.objective.value_targets(batch, student)
        loss, metrics = value_loss(values, targets, batch.response_mask, batch.num_active_tokens)
        self._step_metrics.update({f"train/{name}": pair for name, pair in metrics.items()})
        return loss

    def _micro_batches(self) -> int:
        return self.trainer.world_size * self.trainer.accumulate_grad_batches

    @override
    def on_train_batch_end(self, outputs: object, batch: RolloutBatch, batch_idx: int) -> None:
        self.trainer.profiler.stop("update")  # type: ignore[attr-defined]  # set by Lightning at run time
        self._update_seconds += time.perf_counter() - self._update_started
        if not self.trainer.fit_loop._should_accumulate():  # Lightning's own word on the step
            self.log("time/update", self._update_seconds, batch_size=len(batch))
            self._update_seconds = 0.0

    @override
    def late_metrics(self) -> dict[str, float]:
        return {"time/update": self._update_seconds + time.perf_counter() - self._update_started}

    def _log_step(self, batch_size: int) -> None:
        """Log every quotient of the optimiser step over all ranks."""
        values = self._step_metrics.compute()
        self._step_metrics.reset()
        self.log_dict(values, batch_size=batch_size)
        for name in ("train/teacher_kl", "train/reward"):
            if name in values:
                self.log(name.removeprefix("train/"), values[name], prog_bar=True, logger=False, batch_size=batch_size)

    @override
    def teardown(self, stage: str) -> None:
        for teacher in self.teachers.distinct.values():
            if isinstance(teacher, ScoresLater):
                teacher.close()  # it opens its connections again where it is asked again
        if stage == "fit":
            self._step_metrics.reset()
