"""The table of verbs: what each is called, what it does, where it lives."""

from __future__ import annotations

import contextlib
import importlib
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lightning_opd.cli.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

TRAINER_VERBS = {
    "fit": "Train a model: distil on policy, or supervised.",
    "validate": "Sample, judge and score a model on the validation prompts.",
    "test": "Judge a model on train and test prompts and write `scores.json`.",
    "predict": "Let a model answer prompts and write `predictions.jsonl`.",
}


@dataclass(frozen=True)
class ShortVerb:
    """A verb that needs no Trainer.

    Args:
        home: Module of the function that carries the verb's name.
        help: What it does, in one line.
    """

    home: str
    help: str


SHORT_VERBS = {
    "run": ShortVerb(
        "lightning_opd.cli.recipe.run", "Run a recipe's steps in order; skip finished ones, resume interrupted ones."
    ),
    "parity": ShortVerb(
        "lightning_opd.cli.parity", "Compare student, teachers and baselines from their `scores.json`."
    ),
    "average": ShortVerb(
        "lightning_opd.cli.average", "Merge models by averaging weights or by task arithmetic (the baselines)."
    ),
    "export": ShortVerb("lightning_opd.cli.export", "Turn a training checkpoint into a Hugging Face folder."),
    "script": ShortVerb("lightning_opd.cli.script", "Call `main` of a Python file: a recipe's own step."),
    "tokenizer": ShortVerb(
        "lightning_opd.cli.tokenizer", "Train a small byte-level BPE tokenizer on a task's demonstrations."
    ),
}


def verb_names() -> list[str]:
    """Return all verbs in the order in which help shows them."""
    return [*TRAINER_VERBS, *SHORT_VERBS]


def overview() -> str:
    """Return the text of the top-level help."""
    lines = {**TRAINER_VERBS, **{name: verb.help for name, verb in SHORT_VERBS.items()}}
    verbs = "\n".join(f"  {name:<10} {line}" for name, line in lines.items())
    return (
        "usage: python -m lightning_opd VERB [--config FILE ...] [--key value ...]\n\n"
        "On-policy distillation: a student generates, a teacher scores every token, the student learns.\n\n"
        f"verbs:\n{verbs}\n\n"
        "options:\n  -h, --help  Show this text; after a verb, that verb's options.\n  --version   Show the version.\n"
    )


def run_verb(argv: Sequence[str]) -> None:
    """Run one verb in this process.

    Args:
        argv: The verb and its command line.

    Raises:
        UsageError: If there is no such verb, or its command line or configuration is wrong.
    """
    verb, words = argv[0], list(argv[1:])
    if verb in SHORT_VERBS:
        from lightning_opd.cli.short import run_short_verb

        run_short_verb(verb, SHORT_VERBS[verb].home, words)
    elif verb in TRAINER_VERBS:
        # Imported by name: it costs seconds, and what it imports must not be loaded for the short verbs.
        importlib.import_module("lightning_opd.cli.lightning").run_trainer_verb(verb, words)
    else:
        raise UsageError(_unknown_verb(argv))


@contextlib.contextmanager
def command_line(argv: Sequence[str]) -> Iterator[None]:
    """Make `sys.argv` read as if the process had been started for this verb; launchers start its copies from it."""
    before = sys.argv
    sys.argv = [before[0], *argv]
    try:
        yield
    finally:
        sys.argv = before


def _unknown_verb(argv: Sequence[str]) -> str:
    word = argv[0]
    if word.startswith("-"):
        verb = next((other for other in argv[1:] if other in verb_names()), "VERB")
        cure = f"options follow the verb: `python -m lightning_opd {verb} {word} ...`"
        return f"expected a verb first, got `{word}`; {cure}."
    return f"`{word}` is not a verb.{did_you_mean(word, verb_names())} Verbs: {', '.join(verb_names())}."
