"""Trains three steps on some processes and saves what each step saw; run as a script by every process."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import lightning as L
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, Strategy

from lightning_opd.callbacks import HackDetector, OutcomeReward, TeacherBalance
from lightning_opd.data import SFTDataModule
from lightning_opd.functional.advantages import KLToGo, LogRatioToGo
from lightning_opd.functional.baselines import BatchMean
from lightning_opd.functional.credit import PrefixCredit
from lightning_opd.functional.divergences import ReverseKL
from lightning_opd.functional.outcomes import GRPO
from lightning_opd.functional.policy_losses import PPOClip
from lightning_opd.functional.reductions import TrajectorySum
from lightning_opd.functional.top_k import TopK
from lightning_opd.interfaces import Objective, Split, Task, Teacher
from lightning_opd.models import Lora, StudentConfig
from lightning_opd.modules import Critic, SFTModule
from lightning_opd.objectives import DistributionMatching, OutcomeGradient, PolicyGradient
from lightning_opd.teachers import AdapterTeacher, CrossTokenizerTeacher, LocalTeacher
from lightning_opd.types import Messages, Prompt, RolloutBatch
from tests.agents import ScriptedChat
from tests.world import Letters, Recorder, Warm, make_data, make_module, make_trainer, whole

RUNS: dict[str, Objective] = {
    "distribution_matching": DistributionMatching(),
    "batch_mean": PolicyGradient(LogRatioToGo(), BatchMean(), reduction=TrajectorySum()),
    "critic": PolicyGradient(KLToGo()),
    "many_turns": PolicyGradient(),
    "another_tokenizer": DistributionMatching(TopK(ReverseKL(), 16), teacher_signal="top_k"),
    "outcome": OutcomeGradient(),
    "experts_on_one_base": DistributionMatching(),
    "several_updates": PolicyGradient(policy_loss=PPOClip()),
}


class Double(Warm):
    """Has its adapter, if there is one, in double precision, too."""

    def configure_student(self) -> torch.nn.Module:
        return super().configure_student().double()


class Uneven(Letters):
    """Rewards that differ between siblings, and demonstrations of uneven length."""

    def reward(self, prompt: Prompt, text: str) -> float:
        return float(len(text) % 5)

    def demonstrations(self, split: Split, num_examples: int, seed: int) -> list[Messages]:
        return [
            ({"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": "abcdefgh"[: 1 + i % 8]})
            for i in range(num_examples)
        ]


def strategy_of(name: str) -> Strategy | str:
    if name == "ddp":
        return DDPStrategy(process_group_backend="gloo")
    if name == "fsdp":
        return ModelParallelStrategy(
            data_parallel_size=2,
            tensor_parallel_size=1,
            save_distributed_checkpoint=False,
            process_group_backend="gloo",
        )
    return "auto"


def rows_of(rollouts: RolloutBatch, trainer: L.Trainer) -> dict[str, list[object]]:
    """Return each rollout's tokens, log-probs and scores under its place in the rollout batch, from all ranks."""
    own: dict[str, list[object]] = {}
    seen: dict[int, int] = {}
    for i in range(len(rollouts)):
        group = int(rollouts.group_ids[i])
        seen[group] = seen.get(group, 0) + 1
        mask = rollouts.response_mask[i]
        own[f"{group}.{seen[group]}"] = [
            rollouts.token_ids[i][mask].tolist(),
            rollouts.rollout_logprobs[i][mask].tolist(),
            rollouts.teacher_logprobs[i][mask].tolist(),
        ]
    if trainer.world_size == 1:
        return own
    parts: list[dict[str, list[object]]] = [{} for _ in range(trainer.world_size)]
    torch.distributed.all_gather_object(parts, own)
    return {key: value for part in parts for key, value in part.items()}


class Record(Recorder):
    def __init__(self) -> None:
        super().__init__()
        self.rows: list[dict[str, list[object]]] = []

    def on_rollout_end(self, trainer: L.Trainer, module: L.LightningModule, rollouts: RolloutBatch) -> None:
        super().on_rollout_end(trainer, module, rollouts)
        self.rows.append(rows_of(rollouts, trainer))


class Counts(Recorder):
    """Adds the tokens and rows of each update up over micro-batches and ranks, beside what the batch says of them."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: list[dict[str, tuple[float, float]]] = []
        self._own = torch.zeros(2, dtype=torch.float64)

    def on_train_batch_end(self, trainer: L.Trainer, *arguments: object) -> None:
        _, _, batch, _ = arguments
        assert isinstance(batch, RolloutBatch)
        self._own += torch.tensor([float(batch.response_mask.sum()), float(len(batch))], dtype=torch.float64)
        if trainer.fit_loop._should_accumulate():
            return
        if trainer.world_size > 1:
            torch.distributed.all_reduce(self._own)
        tokens, rows = self._own.tolist()
        said = {"tokens": (tokens, float(batch.num_active_tokens)), "rows": (rows, float(batch.num_trajectories))}
        self.counts.append(said)
        self._own = torch.zeros(2, dtype=torch.float64)


def trainer_of(name: str, folder: Path, *callbacks: Callback) -> L.Trainer:
    return make_trainer(
        folder,
        *callbacks,
        ModelCheckpoint(folder, "{step}", every_n_train_steps=1, save_top_k=-1),
        devices=1 if name == "single" else 2,
        strategy=strategy_of(name),
        max_steps=3,
        accumulate_grad_batches=2,
        enable_checkpointing=True,
        limit_val_batches=1,
        val_check_interval=2,
        gradient_clip_val=0.5,
    )


def weights_of(module: L.LightningModule) -> dict[str, torch.Tensor]:
    return {name: whole(p) for name, p in module.named_parameters() if p.requires_grad}


def distil(name: str, run: str, world: Path, out: Path, adapter: str, ckpt_path: str | None) -> dict[str, Any]:
    """Train one of the runs, from a checkpoint if one is given."""
    L.seed_everything(0, verbose=False)
    teachers: dict[str, Teacher] | None = None
    if run == "another_tokenizer":
        teachers = {"math": foreign_teacher(out.parents[1] / "foreign")}
    if run == "experts_on_one_base":
        experts = out.parents[1] / "experts"
        teachers = {name: AdapterTeacher(str(experts / name), dtype="float64") for name in ("math", "code")}
    lora = Lora(rank=2) if adapter == "lora" else None
    module = make_module(world, RUNS[run], "float64", teachers, Double, lora=lora)
    module.critic = Critic() if run == "critic" else None
    record, counts = Record(), Counts()
    rewards: list[Callback] = [OutcomeReward(advantage=GRPO())] if run == "outcome" else []
    if run in {"batch_mean", "experts_on_one_base"}:
        rewards = [TeacherBalance(by="advantage" if run == "batch_mean" else "tokens")]
    trainer = trainer_of(name, out.parent / f"{name}_{run}", *rewards, record, counts, HackDetector())
    # a lone teacher's rows may all fall to one rank: the other one still has to join its collectives
    task: Task = Letters(teachers=("code", "math", "math", "math"))
    if run == "many_turns":  # a rank whose episodes are over still has to join the other's turns
        task = ScriptedChat()
    if run == "outcome":
        task = Uneven()
    data = make_data(task, prompts_per_batch=4, updates_per_batch=2 if run == "several_updates" else 1)
    trainer.fit(module, data, ckpt_path=ckpt_path)
    found = {"rows": record.rows, "gradients": record.gradients, "logged": record.logged, "counts": counts.counts}
    result = {**found, "weights": weights_of(module)}
    trainer.strategy.barrier()
    return result


def supervise(name: str, world: Path, out: Path) -> dict[str, Any]:
    """Train on demonstrations."""
    record = Recorder()
    trainer = trainer_of(name, out.parent / f"{name}_supervised", record)
    module = SFTModule(
        StudentConfig(str(world / "student"), dtype="float64"), lambda parameters: torch.optim.SGD(parameters, lr=0.01)
    )
    trainer.fit(module, SFTDataModule(Uneven(), batch_size=8, num_examples=48, num_validation_examples=16, seed=0))
    metrics = {key: float(value) for key, value in trainer.callback_metrics.items()}
    result = {"gradients": record.gradients, "weights": weights_of(module), "metrics": metrics}
    trainer.strategy.barrier()
    return result


def main(name: str, world: Path, out: Path, adapter: str, mode: str) -> None:
    """Train every run and save the results.

    Args:
        name: "single", or the strategy of two processes.
        world: Where the models lie.
        out: Where to save.
        adapter: "lora" or "full".
        mode: "whole", or "resume" from each run's first step.
    """
    torch.set_num_threads(1)
    results = {}
    for run in RUNS:
        first_step = str(out.parent / f"{name}_{run}" / "step=1.ckpt")
        results[run] = distil(name, run, world, out, adapter, first_step if mode == "resume" else None)
        if run == "several_updates" and mode == "whole":  # its rollout batch has an update to go
            results["several_updates_resumed"] = distil(name, run, world, out, adapter, first_step)
    if mode == "whole":
        results["supervised"] = supervise(name, world, out)
    if os.environ.get("LOCAL_RANK", "0") == "0":
        torch.save(results, out)


def foreign_teacher(folder: Path) -> CrossTokenizerTeacher:
    return CrossTokenizerTeacher(str(folder), PrefixCredit(), scorer=LocalTeacher(str(folder), dtype="float64"))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4], sys.argv[5])
