"""A setup small enough for every test: two teachers, a student, prompts, and a quiet trainer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger

from lightning_opd.collection import collate as collation
from lightning_opd.data import Evaluation, OPDDataModule
from lightning_opd.interfaces import Objective, OPDCallback, RolloutEngine, Split, Task, Teacher
from lightning_opd.models import StudentConfig
from lightning_opd.modules import OPDModule
from lightning_opd.objectives import DistributionMatching, PolicyGradient
from lightning_opd.rollouts.episodes import generate_episodes, reward_episodes
from lightning_opd.types import Prompt, RolloutBatch, Sampling, Trajectory
from tests.tiny import save_model

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

STOPS = tuple(range(2, 288, 8))
"""Many stop tokens, so that an untrained student's replies have uneven lengths."""

OBJECTIVES: tuple[Objective, ...] = (PolicyGradient(), DistributionMatching())


class Letters(Task):
    """Prompts of uneven length for two teachers; a reply is right if it contains an `a`."""

    def __init__(self, num_prompts: int = 12, teachers: Sequence[str] = ("code", "math")) -> None:
        self.num_prompts, self.teachers = num_prompts, tuple(teachers)

    def prompts(self, split: Split) -> Sequence[Prompt]:
        return [
            Prompt(
                messages=({"role": "user", "content": f"{split[0]}{i} " + "xyz " * (i % 5)},),
                key=f"{split}{i}",
                teacher=self.teachers[i % len(self.teachers)],
                domain=self.teachers[i % len(self.teachers)],
            )
            for i in range(self.num_prompts)
        ]

    def reward(self, prompt: Prompt, text: str) -> float:
        return float("a" in text)


def save_world(folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    """Save a student and two teachers with one tokenizer."""
    for seed, name in enumerate(("student", "math", "code")):
        save_model(folder / name, seed=seed, dtype=dtype)
    return folder


def make_module(
    world: Path,
    objective: Objective | None = None,
    dtype: str = "float32",
    teachers: Mapping[str, Teacher] | None = None,
    kind: type[OPDModule] = OPDModule,
    **student: Any,
) -> OPDModule:
    """Return a module, of a subclass if one is given, whose teachers are `math` and `code`."""
    from lightning_opd.teachers import LocalTeacher

    own = {name: LocalTeacher(str(world / name), dtype=dtype) for name in ("math", "code")}
    return kind(
        StudentConfig(str(world / "student"), dtype=dtype, **student),
        {**own, **(teachers or {})},
        objective or PolicyGradient(),
        lambda parameters: torch.optim.SGD(parameters, lr=0.01, momentum=0.9),
    )


def make_data(task: Task | None = None, **settings: Any) -> OPDDataModule:
    """Return data with rollout batches of four prompts and two siblings."""
    defaults: dict[str, Any] = {
        "prompts_per_batch": 4,
        "samples_per_prompt": 2,
        "sampling": Sampling(max_new_tokens=12, stop_token_ids=STOPS),
        "evaluation": Evaluation(num_prompts=4, num_validation_prompts=2),
        "seed": 0,
    }
    return OPDDataModule(task or Letters(), **{**defaults, **settings})


def make_trainer(folder: Path, *callbacks: Callback, logger: Logger | bool = False, **settings: Any) -> L.Trainer:
    """Return a trainer on one CPU process that prints nothing and saves nothing."""
    defaults: dict[str, Any] = {
        "accelerator": "cpu",
        "devices": 1,
        "max_steps": 2,
        "default_root_dir": folder,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "limit_val_batches": 0,
        "num_sanity_val_steps": 0,
        "log_every_n_steps": 1,
    }
    return L.Trainer(**{**defaults, **settings}, callbacks=list(callbacks), logger=logger)


class Warm(OPDModule):
    """Begins with an adapter that says something: a fresh one's B is zero, which hides its input's dropout."""

    def configure_student(self) -> torch.nn.Module:
        student = super().configure_student()
        generator = torch.Generator().manual_seed(7)
        for name, parameter in student.named_parameters():
            if "lora_B" in name:
                parameter.data.normal_(std=0.05, generator=generator)
        return student


class Recorder(OPDCallback):
    """Records the rollout batches, the gradients of each optimiser step, and the logged metrics."""

    def __init__(self) -> None:
        self.rollout_batches: list[RolloutBatch] = []
        self.gradients: list[dict[str, torch.Tensor]] = []
        self.logged: list[dict[str, float]] = []

    def on_rollout_end(self, trainer: L.Trainer, module: L.LightningModule, rollouts: RolloutBatch) -> None:
        self.rollout_batches.append(rollouts)

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        named = {name: p.grad for name, p in pl_module.named_parameters() if p.grad is not None}
        self.gradients.append({name: whole(gradient) for name, gradient in named.items()})

    def on_train_batch_end(self, trainer: L.Trainer, *_: object) -> None:
        self.logged.append({name: float(value) for name, value in trainer.callback_metrics.items()})


def run_episodes(
    task: Task,
    prompts: Sequence[Prompt],
    engine: RolloutEngine,
    tokenizer: PreTrainedTokenizerBase,
    seeds: Sequence[int],
    sampling: Sampling,
    max_length: int,
    on_progress: Callable[[int], None] | None = None,
) -> list[Trajectory]:
    """Return rewarded episodes, as a rollout batch makes them."""
    episodes = generate_episodes(task, prompts, engine, tokenizer, seeds, sampling, max_length, on_progress)
    return reward_episodes(episodes, task)


def collate(
    trajectories: Sequence[Trajectory],
    group_ids: Sequence[int],
    teacher_ids: Sequence[int],
    teacher_names: Sequence[str],
    temperature: float,
    pad_token_id: int,
    dtype: torch.dtype,
    device: torch.device,
) -> RolloutBatch:
    """Return a rollout batch that no teacher has scored yet."""
    tokens = collation.collate(trajectories, teacher_ids, temperature, pad_token_id, dtype, device)
    return collation.to_rollout_batch(tokens, None, group_ids, teacher_names)


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """Return a copy on one rank of a tensor that may be sharded."""
    from torch.distributed.tensor import DTensor

    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone()


def largest_difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """Return the largest absolute difference of two named sets of tensors."""
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)
