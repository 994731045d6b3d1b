"""The command `merge`: a base, its experts and prompts become one model, by a recipe that can be read and changed."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Literal


def merge(
    base: str,
    experts: list[str],
    prompts: str,
    output: str = "merged",
    start: Literal["base", "average", "task_arithmetic", "ties"] = "base",
    steps: int = 200,
    max_new_tokens: int = 512,
    lora_rank: int | None = None,
    match: Literal["exact", "numeric"] = "exact",
    seed: int = 0,
) -> None:
    """Merge experts of one base into one model by on-policy distillation.

    Writes a recipe into OUTPUT/recipe and runs it: the merge itself and, where the prompts have answers, tests of the
    student, the experts, the base and weight merges on a fifth of the prompts, which is not trained on, and the parity
    report. The model lies in OUTPUT/model: an adapter where the experts are adapters, else a whole model. The same
    command again goes on where it stopped; what the recipe's YAML says can be changed and run with `run OUTPUT/recipe`.

    Args:
        base: Folder or hub name of the model that the experts were trained from.
        experts: NAME=PATH NAME=PATH ...: whole models or LoRA adapters, told apart by their files.
        prompts: File with a `prompt` (or `messages`) and the `teacher`'s name a row, perhaps an `answer`. Rows without
            `teacher` are first tried by every expert (the command `route`); the result is OUTPUT/routed.jsonl.
        output: Folder for the model, the recipe and its outputs.
        start: Where the student starts: the base, or a weight merge of the experts.
        steps: Optimiser steps.
        max_new_tokens: Longest reply in tokens.
        lora_rank: Train an adapter of this rank. By default one is trained where the experts are adapters, or where
            training all weights would not fit into memory.
        match: How a reply equals its answer: the stripped text, or its last number.
        seed: Of order and noise.
    """
    from lightning_opd.cli.run import run
    from lightning_opd.errors import ConfigError
    from lightning_opd.merge.plan import MergePlan, read_experts
    from lightning_opd.merge.recipe import write_recipe
    from lightning_opd.merge.route import route_once
    from lightning_opd.models.hub import locate

    for name, number in (("steps", steps), ("max_new_tokens", max_new_tokens), ("lora_rank", lora_rank)):
        if number is not None and number < 1:
            msg = f"`--{name}` must be at least 1, got {number}."
            raise ConfigError(msg)
    locate(base, "the base")
    found, folder = read_experts(base, experts), Path(output).resolve()
    plan = MergePlan(base, found, prompts, folder, start, steps, max_new_tokens, lora_rank, match)
    plan.check_start()
    routed = route_once(prompts, folder / "routed.jsonl", found, max_new_tokens, match)
    if routed is not None:
        plan = dataclasses.replace(plan, prompts=routed.path)
        sys.stdout.write(f"{routed.summary}\n")
    recipe = write_recipe(plan)
    again = f"python -m lightning_opd run {recipe} --output {folder}"
    sys.stdout.write(f"{plan.summary()}\nThe recipe is {recipe}; after changes there run `{again}`.\n")
    run(str(recipe), seed=seed, output=str(folder))
    sys.stdout.write(f"The merged model: {plan.model}\n")
