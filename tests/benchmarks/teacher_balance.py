"""Merges two experts whose answers are 2 and 21 tokens long, with and without `TeacherBalance`; keeps both parities.

    python -m tests.benchmarks.teacher_balance FOLDER 0 1 2

Both arms start from one base and see the same prompts, half of each domain; 9 % of the tokens are short answers. The
models have two layers of width 64. Writes `teacher_balance.json` beside this file, and the table of the README here.
"""

from __future__ import annotations

import json
import random
import string
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

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
from tests.benchmarks.evidence import provenance, with_table
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
RESULTS = Path(__file__).with_suffix(".json")
README = Path(__file__).with_name("README.md")
STEPS = 200


def supervise(start: Path, folder: Path, task: TwoDomains, steps: int, seed: int) -> Path:
    module = SFTModule(StudentConfig(str(start)), lambda p: torch.optim.AdamW(p, lr=2e-3, weight_decay=0.0))
    data = SFTDataModule(task, batch_size=32, num_examples=32 * steps, num_validation_examples=8, seed=seed)
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


def merge(base: Path, experts: dict[str, str], folder: Path, seed: int, *callbacks: Callback) -> Recorder:
    L.seed_everything(seed, verbose=False)
    module = OPDModule(
        StudentConfig(str(base)), experts, optimizer=lambda p: torch.optim.AdamW(p, lr=1e-3, weight_decay=0.0)
    )
    data = OPDDataModule(BOTH, prompts_per_batch=32, sampling=SAMPLING, seed=seed)
    recorder = Recorder()
    make_trainer(folder, *callbacks, recorder, max_steps=STEPS).fit(module, data)
    export_student(module.loaded_student, load_tokenizer(str(base)), folder)
    return recorder


def measure(folder: Path, seed: int) -> list[dict[str, object]]:
    """Train base and experts, merge them in both arms, and return a row for each arm and domain."""
    L.seed_everything(seed, verbose=False)
    fresh = save_model(folder / "fresh", seed=seed, hidden_size=64, intermediate_size=128)
    base = supervise(fresh, folder / "base", TwoDomains(["short", "long"], is_right=False), 300, seed)
    experts = {d: str(supervise(base, folder / d, TwoDomains([d]), 500, seed)) for d in BOTH.domains}
    teacher, before = {d: rewards(Path(path))[d] for d, path in experts.items()}, rewards(base)
    rows: list[dict[str, object]] = []
    for arm, callbacks in {"balanced": [TeacherBalance()], "unbalanced": []}.items():
        last = merge(base, experts, folder / arm, seed, *callbacks).logged[-25:]
        own = rewards(folder / arm)
        for d in BOTH.domains:
            sampled, fraction = (
                sum(x[f"train/{name}/{d}"] for x in last) / len(last) for name in ("reward", "token_fraction")
            )
            found = {"base": before[d], "expert": teacher[d], "parity": own[d] / teacher[d]}
            found |= {"sampled_parity": sampled / teacher[d], "token_fraction": fraction}
            rows.append({"seed": seed, "arm": arm, "domain": d, **{k: round(v, 4) for k, v in found.items()}})
            sys.stdout.write(f"{rows[-1]}\n")
            sys.stdout.flush()
    return rows


def markdown(results: dict[str, Any]) -> str:
    """Return the table: a row for each arm and domain, means over the seeds."""
    names = ["base", "expert", "parity", "sampled_parity", "token_fraction"]
    head = ["arm", "domain", "base", "expert", "**parity**, greedy", "lowest seed", "parity, sampled", "of the tokens"]
    lines = [head, ["---"] * len(head)]
    for arm in ("balanced", "unbalanced"):
        for d in BOTH.domains:
            rows = [row for row in results["rows"] if (row["arm"], row["domain"]) == (arm, d)]
            base, expert, parity, sampled, fraction = (f"{sum(r[n] for r in rows) / len(rows):.3f}" for n in names)
            lowest = f"{min(row['parity'] for row in rows):.3f}"
            lines.append([arm, d, base, expert, f"**{parity}**", lowest, sampled, fraction])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main(folder: Path, seeds: list[str]) -> None:
    """Measure each seed; write results and README."""
    rows = [row for seed in seeds for row in measure(folder / seed, int(seed))]
    results = {**provenance("python -m tests.benchmarks.teacher_balance FOLDER {0}", seeds), "rows": rows}
    lines = ",\n".join(f"  {json.dumps(row)}" for row in rows)
    rest = json.dumps({**results, "rows": 0}, indent=1).replace('"rows": 0', f'"rows": [\n{lines}\n ]')
    RESULTS.write_text(rest + "\n", encoding="utf-8")
    README.write_text(with_table(README.read_text(encoding="utf-8"), "balance", markdown(results)), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
