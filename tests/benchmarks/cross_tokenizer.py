"""Collects the seeds of recipes/cross_tokenizer into its results.json, and writes its README's tables.

python -m tests.benchmarks.cross_tokenizer splice 1     # the merge of seed 1 once more, on spliced grades
python -m tests.benchmarks.cross_tokenizer collect
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from tests.benchmarks.tables import commit, markdown, parity_table, pooled, reports, write

NAME = "cross_tokenizer"
RUNS = Path(os.environ.get("RUNS", "runs"))
SEED = 1
"""Of the comparison of credits."""
CREDITS = ("span_proportional", "span_equal", "span_whole", "strict", "whole_text", "splice")
"""Names of the overlays; the last one is run by the function of its name."""

OTHERS = ("base",)
NUM_PROMPTS = 256
COMMAND = (
    f"for s in {{0}}; do bash tests/benchmarks/variants.sh {NAME} $s; done && "
    f"bash tests/benchmarks/variants.sh {NAME} {SEED} {' '.join(CREDITS[:-1])} && "
    f"python -m tests.benchmarks.{NAME} splice {SEED} && python -m tests.benchmarks.{NAME} collect {{0}}"
)


def folder(seed: int, name: str) -> Path:
    """Return a step's folder."""
    return RUNS / NAME / f"seed{seed}" / name


def probe(seed: int, student: str) -> dict[str, object]:
    """Let a student answer validation questions and compare native, spliced and spelt log-probs of the answers."""
    from lightning_opd.data.collate import collate
    from lightning_opd.functional.credit import Span, Strict
    from lightning_opd.models import Student, build_student, load_tokenizer
    from lightning_opd.rollouts import InProcessEngine
    from lightning_opd.rollouts.episodes import run_episodes
    from lightning_opd.tasks import Arithmetic
    from lightning_opd.teachers import RetokenizedTeacher
    from lightning_opd.teachers.retokenization_report import retokenization_report
    from lightning_opd.types import Sampling

    path, cpu = str(folder(seed, student) / "model"), torch.device("cpu")
    tokenizer, task, engine = load_tokenizer(path), Arithmetic(), InProcessEngine()
    engine.sync(build_student(Student(path)), 0)
    sampling = Sampling(max_new_tokens=40, stop_token_ids=(int(tokenizer.eos_token_id),), vocab_size=len(tokenizer))
    prompts, rows = task.prompts("validation")[:NUM_PROMPTS], list(range(NUM_PROMPTS))
    with torch.no_grad():
        episodes = run_episodes(task, prompts, engine, tokenizer, rows, sampling, 128)
    window = collate(episodes, rows, [0] * len(rows), ["foreign"], 1.0, tokenizer.pad_token_id, torch.float32, cpu)
    found: dict[str, object] = {"seed": seed, "student": student, "n": NUM_PROMPTS}
    for name, credit in (("strict", Strict()), ("span", Span("proportional", max_tokens=12))):
        teacher = RetokenizedTeacher(str(folder(seed, "foreign") / "model"), credit)
        teacher.introduce(tokenizer)
        teacher.setup(cpu)
        report = retokenization_report(teacher, window)
        found |= {f"kept_tokens_{name}": report.kept_tokens, f"dropped_logprob_{name}": report.dropped_logprob}
    student_logprob = float(window.rollout_logprobs.sum() / NUM_PROMPTS)
    found |= {"student_logprob": student_logprob, "outcome": float(window.rewards.mean())}
    found |= {name: getattr(report, name) for name in ("native", "spliced", "per_character")}
    worst = [dataclasses.asdict(token) for token in report.worst]
    found["worst"] = [{key: value for key, value in token.items() if key != "row"} for token in worst]
    return {key: round(value, 4) if isinstance(value, float) else value for key, value in found.items()}


def curves(seed: int, name: str, step: int = 20) -> list[list[float]]:
    """Return (first step, mean training reward, mean credited KL) of every stretch of the arithmetic prompts."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder(seed, name) / "logs"))
    events.Reload()
    rewards, kls = (events.Scalars(f"train/{tag}/arithmetic") for tag in ("reward", "teacher_kl"))
    stretches: dict[int, list[tuple[float, float]]] = {}
    for reward, kl in zip(rewards, kls, strict=True):
        stretches.setdefault(reward.step // step * step, []).append((reward.value, kl.value))
    return [
        [start, *(round(sum(values) / len(values), 4) for values in zip(*pairs, strict=True))]
        for start, pairs in sorted(stretches.items())
    ]


def outcomes(seed: int, name: str) -> dict[str, dict[str, float]]:
    """Return mode → mean outcome on the arithmetic test prompts, and their number."""
    rows = json.loads((folder(seed, f"test_{name}") / "scores.json").read_text())["rows"]
    found: dict[str, list[float]] = {}
    for row in rows:
        if (row["domain"], row["split"]) == ("arithmetic", "test"):
            found.setdefault(row["mode"], []).append(float(row["outcome"]))
    return {mode: {"mean": round(sum(x) / len(x), 4), "n": len(x)} for mode, x in found.items()}


def alignment_share(seed: int, num_steps: int = 12) -> float:
    """Return the share of a window's processor time that is spent on translating, aligning and crediting."""
    from lightning_opd.cli.main import main as run
    from lightning_opd.teachers import LocalTeacher, RetokenizedTeacher

    whole, scorer, marks, inner = RetokenizedTeacher.score, LocalTeacher.score, [], [0.0]

    def timed(*arguments: object) -> object:
        inner[0], started = 0.0, time.process_time()
        scores = whole(*arguments)
        ended = time.process_time()
        marks.append((ended, ended - started - inner[0]))
        return scores

    def timed_scorer(*arguments: object) -> object:
        started = time.process_time()
        scores = scorer(*arguments)
        inner[0] += time.process_time() - started
        return scores

    RetokenizedTeacher.score, LocalTeacher.score = timed, timed_scorer
    config = folder(seed, "cost") / "merge.yaml"
    config.parent.mkdir(parents=True, exist_ok=True)
    config.write_text(dict(_inputs(seed, "cost"))["merge"])
    assert (
        run(["fit", "--config", str(config), f"--trainer.max_steps={num_steps}", "--trainer.val_check_interval=999"])
        == 0
    )
    RetokenizedTeacher.score, LocalTeacher.score = whole, scorer
    return sum(own for _, own in marks[1:]) / (marks[-1][0] - marks[0][0])


def splice(seed: int) -> None:
    """Train once on spliced grades, which the package refuses, and test the result."""
    from lightning_opd.cli.main import main as run
    from lightning_opd.modules import opd

    opd.check_retokenized_teachers = lambda *_: None
    inputs = folder(seed, "splice") / "inputs"
    inputs.mkdir(parents=True, exist_ok=True)
    for name, text in _inputs(seed, "splice"):
        (inputs / f"{name}.yaml").write_text(text)
    words = ["--config", str(inputs / "merge.yaml"), "--config", str(inputs / "overlay.yaml")]
    for arguments in (
        ["fit", *words, "--seed_everything", str(seed)],
        ["test", "--config", str(inputs / "test.yaml"), "--seed_everything", str(seed)],
    ):
        assert run(arguments) == 0


def _inputs(seed: int, variant: str) -> Iterator[tuple[str, str]]:
    """Yield the merge's YAMLs with a variant's paths, and an overlay with the credit."""
    recipe, root = Path("recipes") / NAME, str(folder(seed, "x").parent)
    for name in ("merge", "test"):
        text = (recipe / f"{name}.yaml").read_text()
        for step in ("merge", "test_merge"):
            text = text.replace(f"seed0/{step}", f"seed0/{step.replace('merge', variant)}")
        yield name, text.replace(f"runs/{NAME}/seed0", root)
    overlay = (recipe / "strict.yaml").read_text().replace("credit.Strict", "credit.Splice")
    yield "overlay", overlay.replace(f"runs/{NAME}/seed0", root)


def tables(results: Mapping) -> dict[str, str]:
    """Return the README's tables by name."""
    texts = [
        [
            f"{p['student']}, seed {p['seed']}",
            f"{p['outcome']:.2f}",
            *(f"{p[name]:.1f}" for name in ("student_logprob", "native", "spliced", "per_character")),
            *(f"{p[f'kept_tokens_{name}']:.2f}" for name in ("strict", "span")),
        ]
        for p in results["probes"]
    ]
    rows = []
    teacher = results["foreign"]
    for name, variant in results["credits"].items():
        numbers = []
        for mode in ("sampled", "greedy"):
            mean = variant["outcomes"][mode]["mean"]
            numbers += [f"{mean:.3f}", f"{mean / teacher[mode]['mean']:.3f}"]
        rows.append([name.replace("_", " "), " ".join(f"{reward:.2f}" for _, reward, _ in variant["curve"]), *numbers])
    for name in ("base", "foreign"):
        means = [f"{results[name][mode]['mean']:.3f}" for mode in ("sampled", "greedy")]
        rows.append([f"*{name}*", "", means[0], "", means[1], ""])
    head = ["credit", "training reward", "sampled", "parity", "greedy", "parity"]
    return {
        "texts": markdown(
            ["texts of", "right", "student", "native", "spliced", "per character", "kept, strict", "kept, span"], texts
        ),
        "credits": markdown(head, rows),
        "parity": parity_table(results["recipe"], OTHERS),
    }


def collect(seeds: list[int]) -> None:
    """Collect, write `results.json`, and put the tables into the README."""
    credits = {name: {"outcomes": outcomes(SEED, name), "curve": curves(SEED, name)} for name in CREDITS}
    own = pooled(reports(RUNS, NAME, seeds, "parity"), ("student", "teacher", *OTHERS))
    results = {
        "command": COMMAND.format(" ".join(map(str, seeds))),
        "commit": commit(),
        "date": datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
        "alignment_share": round(alignment_share(SEED), 4),
        "seeds": seeds,
        "recipe": own,
        "curves": [curves(seed, "merge", 30) for seed in seeds],
        "probes": [probe(SEED, student) for student in ("base", "merge")],
        "seed_of_credits": SEED,
        "foreign": outcomes(SEED, "foreign"),
        "base": outcomes(SEED, "base"),
        "credits": credits,
    }
    write(NAME, results, tables(results))


if __name__ == "__main__":
    verb, *given = sys.argv[1:]
    if verb == "splice":
        splice(int(given[0]))
    else:
        collect([int(seed) for seed in given])
