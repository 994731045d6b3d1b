"""Compares distillation with supervised training where errors compound: running sums with drafts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import lightning as L
from arms import DISCOUNTED, IMMEDIATE, REVERSE_KL, SAMPLES_PER_PROMPT, SUPERVISED, Arm
from running_sum import MendingExpert, RunningSum
from training import Comparison, Ingredients, Ledger, cosine_to_a_tenth, make_trainer, optimizer_at

from lightning_opd import OPDDataModule, OPDModule, Sampling, SFTDataModule, SFTModule, StudentConfig
from lightning_opd.callbacks import ExportHuggingFace
from lightning_opd.collection import OffPolicyResponses, TeacherResponses
from lightning_opd.data import Evaluation
from lightning_opd.tokenization.training import train_tokenizer

ARMS = {
    "reverse KL": REVERSE_KL,
    "immediate": IMMEDIATE,
    "to-go γ=.9, leave-one-out": DISCOUNTED,
    "supervised on teacher samples": SUPERVISED,
}
BATCH_SIZE, SPOILING_STEPS = 32, 60
VOCABULARY = 280
ARCHITECTURE = {
    "model_type": "qwen3",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 256,
    "tie_word_embeddings": True,
    "max_position_embeddings": 256,
}


def make_models(folder: Path, seed: int, num_digits: int, num_steps: int) -> dict[str, float]:
    """Train an expert that corrects slips and makes few, then a base from it that makes more and corrects fewer."""
    task = RunningSum(num_digits)
    chats = task.demonstrations("train", 64, seed)
    texts = (f"{message['role']}\n{message['content']}" for chat in chats for message in chat)
    train_tokenizer(texts, VOCABULARY).save_pretrained(folder / "tokenizer")

    def demonstrate(module: SFTModule, writer: RunningSum, num_batches: int, name: str) -> None:
        L.seed_everything(seed, verbose=False)
        data = SFTDataModule(writer, BATCH_SIZE, num_batches * BATCH_SIZE, seed=seed)
        make_trainer(num_batches, ExportHuggingFace(str(folder / name))).fit(module, data)

    fresh = StudentConfig(random_init=ARCHITECTURE, tokenizer=str(folder / "tokenizer"))
    expert = MendingExpert(fresh, optimizer_at(5e-3), cosine_to_a_tenth(num_steps))
    demonstrate(expert, RunningSum(num_digits, "careful", slip_fraction=0.4), num_steps, "expert")
    base = SFTModule(StudentConfig(str(folder / "expert")), optimizer_at(1e-3), cosine_to_a_tenth(SPOILING_STEPS))
    demonstrate(base, RunningSum(num_digits, "sloppy", slip_fraction=0.15), SPOILING_STEPS, "base")
    module, data = make_module(folder, "expert", REVERSE_KL, 0.0, 1), make_data(task, REVERSE_KL, seed, 1, 256)
    [metrics] = make_trainer(1, validate_every=1).validate(module, data, verbose=False)
    return {key.removeprefix("val/"): value for key, value in metrics.items()}


def make_module(folder: Path, student: str, arm: Arm, lr: float, num_steps: int) -> OPDModule:
    """Return a student with the expert as its teacher."""
    teachers = {"expert": str(folder / "expert")}
    return OPDModule(
        StudentConfig(str(folder / student)), teachers, arm.objective, optimizer_at(lr), cosine_to_a_tenth(num_steps)
    )


def make_data(task: RunningSum, arm: Arm, seed: int, prompts_per_batch: int, num_validation: int) -> OPDDataModule:
    """Return rollout batches with two siblings per prompt."""
    return OPDDataModule(
        task,
        prompts_per_batch=prompts_per_batch,
        samples_per_prompt=SAMPLES_PER_PROMPT,
        sampling=Sampling(max_new_tokens=2 * task.num_digits + 2),
        evaluation=Evaluation(num_validation_prompts=num_validation),
        off_policy_responses=OffPolicyResponses(TeacherResponses(), fraction=1.0) if arm.is_off_policy else None,
        seed=seed,
        max_measured_prompts=256,  # all are about as long, and many runs read them
    )


def main(
    seed: int,
    output: str,
    num_digits: int = 24,
    expert_steps: int = 400,
    lrs: Sequence[float] = (3e-4, 1e-3, 3e-3),
    steps_to_choose: int = 16,
    steps: int = 40,
    num_seeds: int = 3,
    prompts_per_batch: int = 16,
    num_validation: int = 256,
) -> None:
    """Make base and expert, then compare as `convergence.py` does.

    `long_horizon.json` grows run by run; what it holds already is not trained again.

    Args:
        seed: Names the seeds: `num_seeds` from `seed` · `num_seeds` on.
        output: Folder for `long_horizon.json`, base and expert.
        num_digits: Length of the chain.
        expert_steps: Supervised steps of the expert.
        lrs: Learning rates to choose from, the same for every arm.
        steps_to_choose: Steps after which the choice is made.
        steps: Steps of each training.
        num_seeds: Seeds of prompt order and noise.
        prompts_per_batch: Prompts of a rollout batch, two siblings each.
        num_validation: Validation prompts.
    """
    folder, task = Path(output), RunningSum(num_digits)
    ledger = Ledger(folder / "long_horizon.json")
    ledger.once("expert", make_models, folder, seed, num_digits, expert_steps)

    def make(name: str, lr: float, num_steps: int, own_seed: int) -> Ingredients:
        module = make_module(folder, "base", ARMS[name], lr, num_steps)
        return module, make_data(task, ARMS[name], own_seed, prompts_per_batch, num_validation), []

    comparison = Comparison(make, list(ARMS), lrs, steps_to_choose, steps)
    comparison.run(ledger, range(seed * num_seeds, (seed + 1) * num_seeds))
