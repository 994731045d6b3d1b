"""The table of commands: what each is called, what it does, where it lives."""

from __future__ import annotations

TRAINER_COMMANDS = {
    "fit": "Train a model: distil on policy, or supervised.",
    "validate": "Sample, reward and score a model on the validation prompts.",
    "test": "Evaluate a model on train and test prompts and write `scores.json`.",
    "preflight": "Check everything that `fit` needs, and train nothing; exit status 1 if a check fails.",
    "predict": "Let a model answer prompts and write `predictions.jsonl`.",
}
SHORT_COMMANDS = {
    "merge": "Merge experts of one base into one model: train, test, report and export in one line.",
    "route": "Choose the expert that teaches each prompt, where the rows do not say.",
    "run": "Run a recipe's steps in order; skip finished ones, resume interrupted ones.",
    "parity": "Compare student, teachers and baselines from their `scores.json`.",
    "average": "Merge models by their weights: average, task arithmetic, TIES, DARE (the baselines).",
    "export": "Turn a training checkpoint into a Hugging Face folder.",
    "script": "Call `main` of a Python file: a recipe's own step.",
    "copy": "Copy a config or a recipe of the package into the current folder, to edit it.",
    "tokenizer": "Train a small byte-level BPE tokenizer on a task's demonstrations.",
}
"""Commands that need no Trainer; each is the function of its name in `lightning_opd.cli.<name>`."""


def command_names() -> list[str]:
    """Return all commands in the order in which help shows them."""
    return [*TRAINER_COMMANDS, *SHORT_COMMANDS]
