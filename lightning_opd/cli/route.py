"""The command `route`: names the expert that is to teach each prompt."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal

from lightning_opd.errors import ConfigError


def route(
    experts: list[str],
    prompts: str,
    output: str = "routed.jsonl",
    max_new_tokens: int = 512,
    match: Literal["exact", "numeric"] = "exact",
    group: str | None = None,
    sample: int | None = None,
) -> None:
    """Fill in the `teacher` of prompts that have none, and say how sure it is.

    Every expert answers the prompts, greedily. A prompt with an `answer` goes to the expert whose reward is best.
    Where several are equal, or there is no answer, it goes to the one of them whose own answer is likeliest to itself,
    per token. Rows that name a teacher keep it.

    Args:
        experts: NAME=PATH NAME=PATH ...: whole models or LoRA adapters.
        prompts: File with a `prompt` (or `messages`) a row, perhaps an `answer`.
        output: File to write: the same rows with `teacher`, one JSON object a line.
        max_new_tokens: Longest answer in tokens.
        match: How a reply equals its answer: the stripped text, or its last number.
        group: Column whose equal values go to one expert, such as a domain; by default each row is decided by itself.
        sample: Most rows of a group that are tried; the others follow them. By default all are.
    """
    from lightning_opd.merge.plan import read_experts
    from lightning_opd.merge.route import read_rows, route_rows, summary, write_rows

    for name, number in (("max_new_tokens", max_new_tokens), ("sample", sample)):
        if number is not None and number < 1:
            msg = f"`--{name}` must be at least 1, got {number}."
            raise ConfigError(msg)
    if sample is not None and group is None:
        msg = "`--sample` needs `--group COLUMN`: without one each row is decided by itself, so each is tried."
        raise ConfigError(msg)
    if Path(output).is_dir():
        msg = f"`--output` is a file to write, such as routed.jsonl; `{output}` is a folder."
        raise ConfigError(msg)
    found = {name: expert.path for name, expert in read_experts(None, experts).items()}
    if len(found) < 2:
        msg = f"`--experts` needs two or more to choose from, got {', '.join(found)}."
        raise ConfigError(msg)
    rows = read_rows(prompts)
    choices = route_rows(rows, prompts, found, max_new_tokens, match, group, sample)
    write_rows(rows, Path(output))
    sys.stdout.write(f"{summary(choices, list(found))}\nWritten to {output}.\n")
