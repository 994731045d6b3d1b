"""Trains two steps on some processes and saves what each step saw; run as a script, once per strategy."""

from __future__ import annotations

import sys
from pathlib import Path

import lightning as L
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, Strategy

from lightning_opd.callbacks import HackDetector
from lightning_opd.functional.advantages import KLToGo, LogRatioToGo
from lightning_opd.functional.baselines import BatchMean
from lightning_opd.functional.credit import PrefixCredit
from lightning_opd.functional.divergences import ReverseKL
from lightning_opd.functional.reductions import TrajectorySum
from lightning_opd.functional.top_k import TopK
from lightning_opd.interfaces import Task
from lightning_opd.models import Lora
from lightning_opd.modules import Critic
from lightning_opd.objectives import DistributionMatching, PolicyGradient
from lightning_opd.teachers import CrossTokenizerTeacher, LocalTeacher
from lightning_opd.types import RolloutBatch
from tests.agents import ScriptedChat
from tests.world import Letters, Recorder, make_data, make_module, make_trainer, whole

RUNS = {
    "policy_gradient": PolicyGradient(),
    "distribution_matching": DistributionMatching(),
    "batch_mean": PolicyGradient(LogRatioToGo(), BatchMean(), reduction=TrajectorySum()),
    "critic": PolicyGradient(KLToGo()),
    "many_turns": PolicyGradient(),
    "another_tokenizer": DistributionMatching(TopK(ReverseKL(), 16), teacher_signal="top_k"),
}


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
    own = {}
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


def main(name: str, world: Path, out: Path, adapter: str, ckpt: str) -> None:
    from lightning.pytorch.callbacks import ModelCheckpoint

    torch.set_num_threads(1)
    results = {}
    for run, objective in RUNS.items():
        L.seed_everything(0, verbose=False)
        teachers = {"math": foreign_teacher(out.parents[1] / "foreign")} if run == "another_tokenizer" else None
        lora = Lora(rank=2) if adapter == "lora" else None
        module = make_module(world, objective, "float64", teachers, lora=lora)
        module.critic = Critic() if run == "critic" else None
        if adapter == "lora":  # a fresh adapter's B is zero, and so is A's gradient
            module.configure_student = lambda build=module.configure_student: warm(build())
        folder = out.parent / f"{name}_{run}"
        record, saver = Record(), ModelCheckpoint(folder, "{step}", every_n_train_steps=1, save_top_k=-1)
        trainer = make_trainer(
            folder,
            record,
            HackDetector(),
            saver,
            devices=1 if name == "single" else 2,
            strategy=strategy_of(name),
            max_steps=3,
            accumulate_grad_batches=2,
            enable_checkpointing=True,
            limit_val_batches=1,
            val_check_interval=2,
            gradient_clip_val=0.5,
        )
        # a lone teacher's rows may all fall to one rank: the other one still has to join its collectives
        task: Task = Letters(teachers=("code", "math", "math", "math"))
        if run == "many_turns":  # a rank whose episodes are over still has to join the other's turns
            task = ScriptedChat()
        resumed = str(folder / "step=1.ckpt") if ckpt == "resume" else None
        trainer.fit(module, make_data(task, prompts_per_batch=4), ckpt_path=resumed)
        weights = {n: whole(p) for n, p in module.named_parameters() if p.requires_grad}
        results[run] = {
            "rows": record.rows,
            "gradients": record.gradients,
            "weights": weights,
            "logged": record.logged,
        }
        trainer.strategy.barrier()
    if trainer.is_global_zero:
        torch.save(results, out)


def foreign_teacher(folder: Path) -> CrossTokenizerTeacher:
    return CrossTokenizerTeacher(str(folder), PrefixCredit(), scorer=LocalTeacher(str(folder), dtype="float64"))


def warm(student: torch.nn.Module) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(7)
    for name, parameter in student.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.05, generator=generator)
    return student.double()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4], sys.argv[5])
