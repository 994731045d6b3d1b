"""Prints the bias of every credit on all texts of three characters (hardware does not matter):

python -m tests.benchmarks.credit
"""

from __future__ import annotations

import sys

from lightning_opd.functional.advantages import Immediate
from lightning_opd.functional.credit import Credit, ExactMatchCredit, PrefixCredit, SequenceCredit, SpanCredit
from tests.teachers.cross_tokenizer.texts import WORLDS, Texts

CREDITS: dict[str, Credit] = {
    "strict": ExactMatchCredit(),
    "span, equal": SpanCredit("equal"),
    "span, proportional": SpanCredit("proportional"),
    "span, whole": SpanCredit("whole"),
    "whole text": SequenceCredit(),
    "prefix": PrefixCredit(),
}
NUM_TEACHERS = 10


def main() -> None:
    """Print one row per problem and credit: mean, lowest and highest over random students and teachers."""
    lines = [
        "| world | credit | relative error of the gradient | total variation from the teacher at the fixed point |",
        "|---|---|---|---|",
    ]
    for world, merges in WORLDS.items():
        for name, credit in CREDITS.items():
            errors, ends = [], []
            for seed in range(NUM_TEACHERS):
                texts = Texts(*merges, seed=seed)
                exact = texts.exact_gradient()
                errors.append(float((texts.gradient(credit, Immediate()) - exact).norm() / exact.norm()))
                ends.append(texts.fixed_point(credit, Immediate(), 400))
            lines.append(f"| {world} | {name} | {_spread(errors)} | {_spread(ends)} |")
    sys.stdout.write("\n".join(lines) + "\n")


def _spread(values: list[float]) -> str:
    return f"{sum(values) / len(values):.2f} ({min(values):.2f}–{max(values):.2f})"


if __name__ == "__main__":
    main()
