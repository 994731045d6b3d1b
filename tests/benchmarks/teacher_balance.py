"""Merges two experts whose answers are 2 and 21 tokens long, with and without `TeacherBalance`; prints both parities.

Command: python -m tests.benchmarks.teacher_balance FOLDER balanced|unbalanced [STEPS]

Both arms start from one base and see the same prompts, half of each domain; 9 % of the tokens are short answers. After
200 steps (one seed, two layers of width 64, 28 November 2026), greedy rewards of the student ÷ those of each expert:

| | short | long |
|---|---|---|
| balanced (each domain half of the weighted tokens) | 1.000 | .812 |
| unbalanced | .750 | .938 |

Balance moves the signal, it adds none: the long domain gets .55 of its weight, and is later by about as much.
"""

from __future__ import annotations

import random
import string
import sys
from collections.abc import Sequence
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

from lightning_opd.callbacks import TeacherBalance
from lightning_opd.data import OPDDataModule, SFTDataModule
from lightning_opd.interfaces import Split, Task
from lightning_opd.models import StudentConfig, export_student, load_causal_lm, load_tokenizer
from lightning_opd.modules import OPDModule, SFTModule
from lightning_opd.rollouts import InProcessEngine
from lightning_opd.types import Messages, Prompt, Sampling
from tests.tiny import save_model
from tests.world import Recorder, make_trainer, run_episodes

KEYS, MERGED_KEYS, LENGTH = 60, 16, 20
LETTERS = string.ascii_lowercase[:20]
SAMPLING = Sampling(max_new_tokens=LENGTH + 4)


class TwoDomains(Task):
    """`short`: one letter that belongs to a number. `long`: the alphabet, cyclically, from the number's letter on.

    Args:
        domains: Which of the two.
        is_right: Whether demonstrations are right; others show the form alone.
        num_keys: Numbers that are asked about.
    """

    def __init__(self, domains: Sequence[str], is_right: bool = True, num_keys: int = KEYS) -> None:
        self.domains, self.is_right, self.num_keys = list(domains), is_right, num_keys

    def prompts(self, split: Split) -> list[Prompt]:
        return [
            Prompt(
                ({"role": "user", "content": f"{domain} {key}"},),
                f"{domain}{key}",
                domain,
                domain,
                {"answer": answer(domain, key)},
            )
            for key in range(self.num_keys)
            for domain in self.domains
        ]

    def reward(self, prompt: Prompt, text: str) -> float:
        return float(text.strip() == prompt.columns["answer"])

    def demonstrations(self, split: Split, num_examples: int, seed: int) -> list[Messages]:
        noise, prompts = random.Random(seed), self.prompts("train")
        chats: list[Messages] = []
        for i in range(num_examples):
            prompt = prompts[i % len(prompts)]
            text = str(prompt.columns["answer"]) if self.is_right else answer(prompt.domain, noise.randrange(10**6))
            chats.append((*prompt.messages, {"role": "assistant", "content": text}))
        return chats


def answer(domain: str, key: int) -> str:
    start = random.Random(f"{domain}{key}").randrange(len(LETTERS))
    letters = LETTERS[start:] + LETTERS[:start]
    return letters[0] if domain == "short" else letters[:LENGTH]


BOTH = TwoDomains(["short", "long"], num_keys=MERGED_KEYS)


def supervise(start: Path, folder: Path, task: TwoDomains, steps: int) -> Path:
    module = SFTModule(StudentConfig(str(start)), lambda p: torch.optim.AdamW(p, lr=2e-3, weight_decay=0.0))
    data = SFTDataModule(task, batch_size=32, num_examples=32 * steps, num_validation_examples=8, seed=0)
    make_trainer(folder, max_steps=steps).fit(module, data)
    export_student(module.loaded_student, load_tokenizer(str(start)), folder)
    return folder


def rewards(path: Path) -> dict[str, float]:
    """Return the mean reward of greedy answers to the prompts of the merge, by domain."""
    task, tokenizer, engine = BOTH, load_tokenizer(str(path)), InProcessEngine()
    engine.sync(load_causal_lm(str(path)), 0)
    greedy = Sampling(0.0, max_new_tokens=LENGTH + 4, stop_token_ids=(tokenizer.eos_token_id,))
    prompts = task.prompts("test")
    found = run_episodes(task, prompts, engine, tokenizer, range(len(prompts)), greedy, 256)
    return {d: sum(t.reward for t in found if t.prompt.domain == d) / MERGED_KEYS for d in task.domains}


def merge(base: Path, experts: dict[str, str], folder: Path, steps: int, *callbacks: Callback) -> Recorder:
    L.seed_everything(0, verbose=False)
    module = OPDModule(
        StudentConfig(str(base)), experts, optimizer=lambda p: torch.optim.AdamW(p, lr=1e-3, weight_decay=0.0)
    )
    data = OPDDataModule(BOTH, prompts_per_batch=32, sampling=SAMPLING, seed=0)
    recorder = Recorder()
    make_trainer(folder, *callbacks, recorder, max_steps=steps).fit(module, data)
    export_student(module.loaded_student, load_tokenizer(str(base)), folder)
    return recorder


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main(folder: Path, arm: str, steps: int) -> None:
    L.seed_everything(0, verbose=False)
    if not (folder / "long").is_dir():
        fresh = save_model(folder / "fresh", hidden_size=64, intermediate_size=128)
        supervise(fresh, folder / "base", TwoDomains(["short", "long"], is_right=False), 300)
        for domain in BOTH.domains:
            supervise(folder / "base", folder / domain, TwoDomains([domain]), 500)
    experts = {domain: str(folder / domain) for domain in BOTH.domains}
    teacher = {domain: rewards(Path(path))[domain] for domain, path in experts.items()}
    say(f"greedy rewards: base {rewards(folder / 'base')}, experts {teacher}")
    callbacks = [TeacherBalance()] if arm == "balanced" else []
    recorder = merge(folder / "base", experts, folder / arm, steps, *callbacks)
    for end in range(25, steps + 1, 25):
        last = recorder.logged[end - 25 : end]
        means = {d: sum(step[f"train/reward/{d}"] for step in last) / len(last) / teacher[d] for d in BOTH.domains}
        tokens = sum(step["train/token_fraction/short"] for step in last) / len(last)
        parity = ", ".join(f"{domain} {mean:.3f}" for domain, mean in means.items())
        say(f"{arm}, steps {end - 24} to {end}: sampled parity {parity}; {tokens:.3f} of the tokens are short answers")
    own = rewards(folder / arm)
    say(f"{arm}, after step {steps}: greedy parity { ({d: round(own[d] / teacher[d], 3) for d in teacher}) }")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]) if len(sys.argv) > 3 else 300)
