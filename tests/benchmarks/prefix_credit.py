"""Time and memory of `PrefixCredit` on long replies, against the plain forward of the same teacher.

    OMP_NUM_THREADS=1 python -m tests.benchmarks.prefix_credit --out prefix_credit.json
    OMP_NUM_THREADS=1 python -m tests.benchmarks.prefix_credit --teacher smollm2 --lengths 1000 2000
    OMP_NUM_THREADS=1 python -m tests.benchmarks.prefix_credit --trees 8192 32768 65536

The student has the tokenizer of Llama 3.1; the teacher is SmolLM2-135M-Instruct, or a random model with Qwen 3's
tokenizer and as many layers and heads as `--layers` and `--width` say. Every figure comes from a process of its own,
so that the peak memory is its own; the plain forward scores the same text in the teacher's own tokens.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from lightning_opd.functional.credit import PrefixCredit
from lightning_opd.teachers import CrossTokenizerTeacher, LocalTeacher
from lightning_opd.teachers.cross_tokenizer.prefix_tree import prefix_tree
from lightning_opd.types import Prompt, SampledTokens, Signal, TokenTree, Trajectory
from tests.real import fetch

PROSE = (
    "Natalia sold forty-eight clips in April, and half as many in May; how many did she sell altogether? She thought "
    "about it carefully, because the answer depends on whether both months are counted together. In April it was 48, "
    "in May it was 48 / 2 = 24, and therefore 48 + 24 = 72. Let us verify this result with a different approach: the "
    "average of both months is 36, and twice the average is 72 again.\n\nNow consider the more general situation, "
    "where the number of clips falls by a constant fraction from one month to the next. "
)
CODE = (
    "def fibonacci(n: int) -> int:\n    a, b = 0, 1\n    for _ in range(n):\n        a, b = b, a + b\n    return a\n\n"
)


LOGPROBS = frozenset({Signal.LOGPROBS})


class Counts(LocalTeacher):
    """Counts the tokens that it reads in trees, prompts included."""

    num_read = 0

    @override
    def tree_hidden_states(
        self, trunks: Iterable[Sequence[int]], branches: Callable[[Tensor], TokenTree]
    ) -> Iterator[Tensor]:
        def counted(states: Tensor) -> TokenTree:
            tree = branches(states)
            self.num_read += len(states) + len(tree.token_ids)
            return tree

        yield from super().tree_hidden_states(trunks, counted)


def main() -> None:
    """Measure in processes of their own, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", choices=("random", "smollm2"), default="random")
    parser.add_argument("--lengths", type=int, nargs="*", default=[1000, 2000, 4000, 8000])
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--trees", type=int, nargs="*", default=[], help="tokens of trees for a tiny model to read")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--only", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only:
        sys.stdout.write(json.dumps(measure(arguments.only, arguments)) + "\n")
        return
    for size in sorted(arguments.trees):
        sys.stdout.write(json.dumps(read_tree(size)) + "\n")
        sys.stdout.flush()
    rows = []
    for length in [] if arguments.trees else arguments.lengths:
        row: dict[str, Any] = {"tokens": length}
        for what in ("plain", "prefix"):
            command = [sys.executable, "-m", "tests.benchmarks.prefix_credit", "--only", what]
            settings = ["--teacher", arguments.teacher, "--lengths", str(length)]
            size = ["--layers", str(arguments.layers), "--width", str(arguments.width)]
            answer = subprocess.run([*command, *settings, *size], check=True, capture_output=True, text=True)
            row |= {f"{what}_{name}": value for name, value in json.loads(answer.stdout.splitlines()[-1]).items()}
        row["ratio"] = round(row["prefix_score_s"] / row["plain_score_s"], 2)
        rows.append(row)
        sys.stdout.write(json.dumps(row) + "\n")
        sys.stdout.flush()
    if arguments.out:
        arguments.out.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def measure(what: str, arguments: argparse.Namespace) -> dict[str, float]:
    """Return seconds of processor time and the peak memory of one way to score one reply."""
    student, (length,) = fetch.tokenizer("llama3_1"), arguments.lengths
    reply = (PROSE * 3 + CODE) * (1 + length // 200)
    ids = student(reply, add_special_tokens=False)["input_ids"][:length]
    with tempfile.TemporaryDirectory() as folder:
        path = str(fetch.smollm2()) if arguments.teacher == "smollm2" else random_teacher(Path(folder), arguments)
        scorer = Counts(path, dtype="float32")
        teacher = scorer if what == "plain" else CrossTokenizerTeacher(path, PrefixCredit(), scorer=scorer)
        result: dict[str, float] = {}
        if isinstance(teacher, CrossTokenizerTeacher):
            teacher.set_student_tokenizer(student)
        teacher.setup(torch.device("cpu"))
        if isinstance(teacher, CrossTokenizerTeacher):
            teacher.score(batch_of(ids[:16]), LOGPROBS)  # sorts the vocabularies, once in a run
            scorer.num_read = 0
            prefix_tree(teacher.translator, ids[:16])
            started = time.process_time()
            tree = prefix_tree(teacher.translator, ids)
            result = {"tree_s": round(time.process_time() - started, 2), "nodes": len(tree.token_ids)}
        else:
            ids = teacher.tokenizer()(student.decode(ids), add_special_tokens=False)["input_ids"]
            result = {"tokens": len(ids)}
        loaded, started = peak_mib(), time.process_time()
        teacher.score(batch_of(ids), LOGPROBS)
        seconds = round(time.process_time() - started, 2)
        if what == "prefix":
            result["read"] = scorer.num_read
        return result | {"score_s": seconds, "loaded_mib": loaded, "peak_mib": peak_mib()}


def read_tree(size: int) -> dict[str, float]:
    """Return seconds and peak memory in which a tiny model reads a trunk with three leaves at each of its tokens."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    from lightning_opd.models import LanguageModel, TreeReading

    config = LlamaConfig(
        vocab_size=64,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=1,
        max_position_embeddings=2**16,
    )
    model = LanguageModel(AutoModelForCausalLM.from_config(config).eval(), 64)
    parents = [-1 if i == 0 else 4 * ((i - 1) // 4) for i in range(size)]
    loaded, started = peak_mib(), time.process_time()
    reading = TreeReading([TokenTree([i % 64 for i in range(size)], parents)])
    planned = time.process_time() - started
    list(model.read_trees(reading))
    seconds = round(time.process_time() - started, 2)
    return {"tree": size, "plan_s": round(planned, 2), "read_s": seconds, "loaded_mib": loaded, "peak_mib": peak_mib()}


def batch_of(ids: list[int]) -> SampledTokens:
    """Return one prompt with one reply as a batch."""
    prompt = Prompt(({"role": "user", "content": "What is 48 + 24?"},), "72", "prose", "prose")
    tokens, mask = (0, *ids), (False, *([True] * len(ids)))
    trajectory = Trajectory(prompt, tokens, mask, (0.0,) * len(tokens), "", is_truncated=True)
    return SampledTokens.from_sequences(
        [tokens], [mask], 0, torch.float32, torch.device("cpu"), trajectories=[trajectory]
    )


def random_teacher(folder: Path, arguments: argparse.Namespace) -> str:
    """Save a random model with Qwen 3's tokenizer, and return its folder."""
    from transformers import AutoModelForCausalLM, Qwen3Config

    tokenizer = fetch.tokenizer("qwen3")
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=arguments.width,
        intermediate_size=3 * arguments.width,
        num_hidden_layers=arguments.layers,
        num_attention_heads=arguments.width // 64,
        num_key_value_heads=max(1, arguments.width // 256),
        head_dim=64,
        max_position_embeddings=2**16,
        tie_word_embeddings=True,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def peak_mib() -> int:
    """Return the most memory this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


if __name__ == "__main__":
    main()
