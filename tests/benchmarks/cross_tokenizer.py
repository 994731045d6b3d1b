"""Compares the credits of recipes/cross_tokenizer, and collects its seeds into its results.json and README.

python -m tests.benchmarks.cross_tokenizer train 1 CREDIT...    # after the recipe: one merge and test per credit
python -m tests.benchmarks.cross_tokenizer collect 1 0 1 2      # the seed of the credits, and those of the recipe
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from tests.benchmarks.evidence import RECIPES, RUNS, provenance, with_table, with_variant, write
from tests.benchmarks.merge_tiny import pooled, table

RECIPE = RECIPES / "cross_tokenizer"
CREDITS = ("prefix", "span_proportional", "span_equal", "span_whole", "strict", "whole_text", "splice")
"""Names of the overlays; `splice` has none, because the package refuses it."""

NUM_PROMPTS = 256
COMMAND = (
    "for seed in {1}; do python -m lightning_opd run recipes/cross_tokenizer --seed $seed; done; "
    f"python -m tests.benchmarks.cross_tokenizer train {{0}} {' '.join(CREDITS)}; "
    "python -m tests.benchmarks.cross_tokenizer collect {0} {1}"
)


def folder(seed: int, name: str) -> Path:
    """Return a step's folder."""
    return RUNS / RECIPE.name / f"seed{seed}" / name


def probe(seed: int, student: str) -> dict[str, object]:
    """Let a student answer validation questions and compare native, spliced and spelt log-probs of the answers."""
    from lightning_opd.functional.credit import ExactMatchCredit, SpanCredit
    from lightning_opd.models import StudentConfig, build_student, load_tokenizer
    from lightning_opd.rollouts import InProcessEngine
    from lightning_opd.tasks import Arithmetic
    from lightning_opd.teachers import CrossTokenizerTeacher
    from lightning_opd.teachers.cross_tokenizer.report import cross_tokenizer_report
    from lightning_opd.types import Sampling
    from tests.world import collate, run_episodes

    path, cpu = str(folder(seed, student) / "model"), torch.device("cpu")
    tokenizer, task, engine = load_tokenizer(path), Arithmetic(), InProcessEngine()
    engine.sync(build_student(StudentConfig(path)), 0)
    sampling = Sampling(max_new_tokens=40, stop_token_ids=(int(tokenizer.eos_token_id),), vocab_size=len(tokenizer))
    prompts, rows = task.prompts("validation")[:NUM_PROMPTS], list(range(NUM_PROMPTS))
    with torch.no_grad():
        episodes = run_episodes(task, prompts, engine, tokenizer, rows, sampling, 128)
    rollouts = collate(episodes, rows, [0] * len(rows), ["foreign"], 1.0, tokenizer.pad_token_id, torch.float32, cpu)
    found: dict[str, object] = {"seed": seed, "student": student, "n": NUM_PROMPTS}
    for name, credit in (("strict", ExactMatchCredit()), ("span", SpanCredit("proportional", max_tokens=12))):
        teacher = CrossTokenizerTeacher(str(folder(seed, "foreign") / "model"), credit)
        teacher.set_student_tokenizer(tokenizer)
        teacher.setup(cpu)
        report = cross_tokenizer_report(teacher, rollouts)
        found |= {f"kept_tokens_{name}": report.kept_tokens, f"dropped_logprob_{name}": report.dropped_logprob}
    student_logprob = float(rollouts.rollout_logprobs.sum() / NUM_PROMPTS)
    found |= {"student_logprob": student_logprob, "reward": float(rollouts.rewards.mean())}
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
    segments: dict[int, list[tuple[float, float]]] = {}
    for reward, kl in zip(rewards, kls, strict=True):
        segments.setdefault(reward.step // step * step, []).append((reward.value, kl.value))
    return [
        [start, *(round(sum(values) / len(values), 4) for values in zip(*pairs, strict=True))]
        for start, pairs in sorted(segments.items())
    ]


def outcomes(seed: int, name: str) -> dict[str, dict[str, float]]:
    """Return mode → mean outcome on the arithmetic test prompts, and their number."""
    rows = json.loads((folder(seed, f"test_{name}") / "scores.json").read_text())["rows"]
    found: dict[str, list[float]] = {}
    for row in rows:
        if (row["domain"], row["split"]) == ("arithmetic", "test"):
            found.setdefault(row["mode"], []).append(float(row["reward"]))
    return {mode: {"mean": round(sum(x) / len(x), 4), "n": len(x)} for mode, x in found.items()}


def alignment_fraction(seed: int, *overlays: str, num_steps: int = 7) -> float:
    """Return the fraction of a rollout batch's processor time that is spent on translating, aligning and crediting."""
    from lightning_opd.models import LanguageModel
    from lightning_opd.teachers import CrossTokenizerTeacher, LocalTeacher

    marks: list[tuple[float, float]] = []
    inner = [0.0]

    def timed(*arguments: Any) -> Any:
        inner[0], started = 0.0, time.process_time()
        scores = whole(*arguments)
        ended = time.process_time()
        marks.append((ended, ended - started - inner[0]))
        return scores

    def timed_scorer(method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            started = time.process_time()
            scores = method(*arguments)
            inner[0] += time.process_time() - started
            return scores

        return call

    def timed_reader(reader: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
        def call(*arguments: Any) -> Iterator[Any]:
            answers = reader(*arguments)
            while True:
                started = time.process_time()
                answer = next(answers, None)
                inner[0] += time.process_time() - started
                if answer is None:
                    return
                yield answer

        return call

    whole = CrossTokenizerTeacher.score
    with (
        mock.patch.object(CrossTokenizerTeacher, "score", timed),
        mock.patch.object(LocalTeacher, "score", timed_scorer(LocalTeacher.score)),
        mock.patch.object(LanguageModel, "read_trees", timed_reader(LanguageModel.read_trees)),
    ):
        fit(seed, "cost", *overlays, more=(f"--trainer.max_steps={num_steps}", "--trainer.val_check_interval=999"))
    return sum(own for _, own in marks[1:]) / (marks[-1][0] - marks[0][0])


def fit(seed: int, variant: str, *overlays: str, more: Sequence[str] = ()) -> None:
    """Run the recipe's merge with overlays."""
    from lightning_opd.cli.main import main as run

    configs = [word for name in ("merge", *overlays) for word in ("--config", write_config(seed, variant, name))]
    assert run(["fit", *configs, "--seed_everything", str(seed), *more]) == 0


def train(seed: int, credit: str) -> None:
    """Run a merge of sampled tokens with a credit's overlay, and test the student on arithmetic."""
    from lightning_opd.cli.main import main as run
    from lightning_opd.modules import opd

    # the package refuses to train on it: this once it shall not
    check = mock.patch.object(opd, "check_cross_tokenizer_teachers") if credit == "splice" else nullcontext()
    with check:
        fit(seed, credit, "sampled", credit)
    test = ["test", "--config", write_config(seed, credit, "test"), "--seed_everything", str(seed)]
    assert run([*test, "--data.evaluation.splits=[test]", "--data.evaluation.num_prompts={arithmetic: 2048}"]) == 0


def write_config(seed: int, variant: str, name: str) -> str:
    """Write one of the recipe's YAMLs with a variant's and a seed's paths, and return its path."""
    is_splice = name == "splice"
    text = (RECIPE / f"{'strict' if is_splice else name}.yaml").read_text()
    text = text.replace("credit.ExactMatchCredit", "credit.SpliceCredit") if is_splice else text
    path = folder(seed, variant) / "inputs" / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(with_variant(text, folder(seed, "x").parent, variant))
    return str(path)


def tables(results: Mapping[str, Any]) -> dict[str, str]:
    """Return the README's tables by name."""
    texts = [
        [
            str(probed["student"]).replace("_", " "),
            f"{probed['reward']:.2f}",
            *(f"{probed[name]:.1f}" for name in ("student_logprob", "native", "spliced", "per_character")),
            *(f"{probed[f'kept_tokens_{name}']:.2f}" for name in ("strict", "span")),
        ]
        for probed in results["probes"]
    ]
    credits = []
    for name, variant in results["credits"].items():
        cells = [name.replace("_", " "), " ".join(f"{reward:.2f}" for _, reward, _ in variant["curve"])]
        for mode in ("sampled", "greedy"):
            mean = variant["outcomes"][mode]["mean"]
            cells += [f"{mean:.3f}", f"{mean / results['foreign'][mode]['mean']:.3f}"]
        credits.append(cells)
    for name in ("base", "foreign"):
        means = [f"{results[name][mode]['mean']:.3f}" for mode in ("sampled", "greedy")]
        credits.append([f"*{name}*", "", means[0], "", means[1], ""])
    return {
        "parity": table(results["parity"]),
        "texts": _markdown(
            ["texts of", "right", "student", "native", "spliced", "per character", "kept, strict", "kept, span"], texts
        ),
        "credits": _markdown(["credit", "training reward", "sampled", "parity", "greedy", "parity"], credits),
    }


def _markdown(head: list[str], rows: list[list[str]]) -> str:
    lines = [f"| {' | '.join(row)} |" for row in (head, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(head), *lines[1:]])


def with_tables(text: str, results: Mapping[str, Any]) -> str:
    """Return the README with each table between its markers."""
    for name, rows in tables(results).items():
        text = with_table(text, name, rows)
    return text


def collect(seed: int, seeds: Sequence[int]) -> None:
    """Collect and write.

    Args:
        seed: That the credits were compared with.
        seeds: Of the recipe's runs.
    """
    reports = [json.loads((folder(number, "parity") / "parity.json").read_text()) for number in seeds]
    results = {
        **provenance(COMMAND.format(seed, " ".join(map(str, seeds))), [str(number) for number in seeds]),
        "parity": pooled(reports),
        "alignment_fraction": {
            "span_proportional": round(alignment_fraction(seed, "sampled", "span_proportional"), 4),
            "prefix": round(alignment_fraction(seed, "sampled", "prefix"), 4),
            "prefix_distributions": round(alignment_fraction(seed), 4),
        },
        "probes": [probe(seed, student) for student in ("base", "merge")],
        "foreign": outcomes(seed, "foreign"),
        "base": outcomes(seed, "base"),
        "credits": {name: {"outcomes": outcomes(seed, name), "curve": curves(seed, name)} for name in CREDITS},
    }
    write(RECIPE, results, with_tables((RECIPE / "README.md").read_text(encoding="utf-8"), results))


if __name__ == "__main__":
    command, number, *words = sys.argv[1:]
    if command == "train":
        for word in words:
            train(int(number), word)
    else:
        collect(int(number), [int(word) for word in words])
