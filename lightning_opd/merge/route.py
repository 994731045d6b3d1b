"""Chooses the teacher of each prompt: the expert whose own answer is right, or of which it is surest."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lightning_opd.errors import ConfigError
from lightning_opd.merge.plan import Expert, check_teacher
from lightning_opd.models import declared_stop_ids, load_causal_lm, load_config, load_tokenizer
from lightning_opd.models.adapters import adapter_base
from lightning_opd.models.language_model import context_length
from lightning_opd.rollouts.episodes import generate_episodes, reward_episodes
from lightning_opd.rollouts.in_process import InProcessEngine
from lightning_opd.tasks import Jsonl
from lightning_opd.tasks.rows.places import sources_of
from lightning_opd.tokenization.turn_borders import stop_token_ids
from lightning_opd.types import Prompt, Sampling

if TYPE_CHECKING:
    from typing import Literal

TEACHER = "teacher"
NOBODY = "nobody yet"


@dataclass(frozen=True)
class Attempt:
    """An expert's greedy answer to a prompt.

    Args:
        reward: Of the answer; 0 where the row has none.
        likelihood: Mean log-prob of its tokens under the expert itself, in nats.
    """

    reward: float
    likelihood: float


@dataclass(frozen=True)
class Choice:
    """The expert of some rows, and how sure the choice is.

    Args:
        teacher: Its name.
        num_rows: Rows that go to it.
        num_tried: Rows of them that were tried.
        by_reward: Whether its reward alone was the best; else the likelihood chose among the best.
        margin: Ahead of the second, in reward or in nats per token.
    """

    teacher: str
    num_rows: int
    num_tried: int
    by_reward: bool
    margin: float


def read_rows(path: str) -> list[dict[str, Any]]:
    """Return the rows of a file, a folder or a data set as they are, in order."""
    sources = sources_of(path, "prompts").get("train", [])
    return [dict(row) for source in sources for _, row in source.read(frozenset({"prompt", "messages"}))]


def attempts(
    path: str, task: Jsonl, prompts: Sequence[Prompt], max_new_tokens: int, device: torch.device
) -> list[Attempt]:
    """Return an expert's greedy answer to each prompt.

    Args:
        path: Folder or hub name of the expert, or folder of its adapter.
        task: Rewards the answers.
        prompts: Some of the task's.
        max_new_tokens: Longest answer in tokens.
        device: Where to generate.
    """
    tokenizer, config = load_tokenizer(path), load_config(adapter_base(path) or path)
    sampling = Sampling(
        temperature=0.0,
        max_new_tokens=max_new_tokens,
        stop_token_ids=stop_token_ids(tokenizer, declared_stop_ids(path, config)),
        vocab_size=len(tokenizer),
    )
    engine = InProcessEngine()
    engine.sync(load_causal_lm(path).to(device), 0)  # type: ignore[arg-type]  # transformers' own overload
    episodes = generate_episodes(
        task, prompts, engine, tokenizer, range(len(prompts)), sampling, context_length(config)
    )
    engine.close()
    return [Attempt(t.reward, sum(t.logprobs) / max(1, sum(t.response_mask))) for t in reward_episodes(episodes, task)]


def choose(
    tried: Mapping[str, Sequence[Attempt]], groups: Sequence[Sequence[int]], places: Mapping[int, int]
) -> list[Choice]:
    """Return the expert of each group of rows: the best mean reward, and among equals the best mean likelihood.

    Args:
        tried: Expert's name → its answers.
        groups: Rows that get one expert; the tried ones speak for the others.
        places: Row → its place among the answers, for the rows that were tried.

    Example:
        >>> tried = {"code": [Attempt(0, -1.0)], "math": [Attempt(1, -3.0)]}
        >>> choose(tried, [[0]], {0: 0})
        [Choice(teacher='math', num_rows=1, num_tried=1, by_reward=True, margin=1.0)]
    """
    choices = []
    for rows in groups:
        own = [places[row] for row in rows if row in places]
        means = {
            name: (
                sum(answers[place].reward for place in own) / len(own),
                sum(answers[place].likelihood for place in own) / len(own),
            )
            for name, answers in tried.items()
        }
        best, *others = sorted(means, key=lambda name: means[name], reverse=True)
        second = means[others[0]] if others else means[best]
        by_reward = means[best][0] > second[0]
        margin = means[best][0] - second[0] if by_reward else means[best][1] - second[1]
        choices.append(Choice(best, len(rows), len(own), by_reward, margin))
    return choices


def route_rows(
    rows: list[dict[str, Any]],
    path: str,
    experts: Mapping[str, str],
    max_new_tokens: int,
    match: Literal["exact", "numeric"],
    group: str | None = None,
    sample: int | None = None,
) -> list[Choice]:
    """Fill in the `teacher` of the rows that have none, and return how each was chosen.

    Args:
        rows: As `read_rows` gives them; changed in place.
        path: Where they come from.
        experts: Name → path.
        max_new_tokens: Longest answer in tokens.
        match: How a reply equals its answer.
        group: Column whose equal values share an expert; None decides each row by itself.
        sample: Most rows of a group that are tried; all by default.

    Raises:
        ConfigError: A row lacks the column.
    """
    task = Jsonl(path, teacher=NOBODY, match=match)
    prompts = task.prompts("train")
    for row, prompt in zip(rows, prompts, strict=True):
        if row.get(TEACHER) is not None:
            named = row[TEACHER]
            for name in named if isinstance(named, Mapping) else [named]:
                check_teacher(str(name), prompt.place, list(experts))
    open_rows = [i for i, row in enumerate(rows) if row.get(TEACHER) is None]
    if not open_rows:
        return []
    by_value: dict[object, list[int]] = defaultdict(list)
    for i in open_rows:
        if group is not None and rows[i].get(group) is None:
            msg = (
                f"{prompts[i].place}: `--group {group}` names a column that the row has not. Has: {', '.join(rows[i])}."
            )
            raise ConfigError(msg)
        by_value[i if group is None else str(rows[i][group])].append(i)
    chosen = [i for own in by_value.values() for i in sorted(own, key=lambda i: prompts[i].key)[: sample or len(own)]]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tried = {
        name: attempts(expert, task, [prompts[i] for i in chosen], max_new_tokens, device)
        for name, expert in experts.items()
    }
    groups = list(by_value.values())
    choices = choose(tried, groups, {row: place for place, row in enumerate(chosen)})
    for own, choice in zip(groups, choices, strict=True):
        for i in own:
            rows[i][TEACHER] = choice.teacher
    return choices


@dataclass(frozen=True)
class Routed:
    """Where routed rows lie, and how they were chosen.

    Args:
        path: Of the file.
        summary: The table of `summary`.
    """

    path: str
    summary: str


def route_once(
    path: str,
    output: Path,
    experts: Mapping[str, Expert],
    max_new_tokens: int,
    match: Literal["exact", "numeric"],
) -> Routed | None:
    """Route rows into a file, unless all of them name their teacher; what was routed before is used again.

    Args:
        path: Where the rows are.
        output: File to write; what it was made of is kept beside it.
        experts: By name.
        max_new_tokens: Longest answer in tokens.
        match: How a reply equals its answer.
    """
    rows = read_rows(path)
    if all(row.get(TEACHER) is not None for row in rows):
        return None
    paths = {name: expert.path for name, expert in experts.items()}
    made_of = json.dumps([rows, paths, max_new_tokens, match], sort_keys=True, default=str)
    digest, note = hashlib.sha256(made_of.encode()).hexdigest(), output.with_suffix(".json")
    if output.is_file() and note.is_file():
        before = json.loads(note.read_text(encoding="utf-8"))
        if before["digest"] == digest:
            return Routed(str(output), before["summary"])
    said = summary(route_rows(rows, path, paths, max_new_tokens, match), list(experts))
    write_rows(rows, output)
    note.write_text(json.dumps({"digest": digest, "summary": said}), encoding="utf-8")
    return Routed(str(output), said)


def write_rows(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write rows as one JSON object a line; what JSON does not know becomes text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8")


def summary(choices: Sequence[Choice], experts: Sequence[str]) -> str:
    """Return a table: rows of each expert, how many its reward or its likelihood decided, and the mean margins."""
    lines = [f"{'expert':<16}{'rows':>8}{'by reward':>12}{'margin':>9}{'by likelihood':>16}{'margin, nats':>14}"]
    for name in experts:
        own = [choice for choice in choices if choice.teacher == name]
        parts = [[c for c in own if c.by_reward], [c for c in own if not c.by_reward]]
        counts = [sum(c.num_rows for c in part) for part in parts]
        margins = [f"{sum(c.margin for c in part) / len(part):.3f}" if part else "–" for part in parts]
        line = f"{name:<16}{sum(counts):>8,}{counts[0]:>12,}{margins[0]:>9}{counts[1]:>16,}{margins[1]:>14}"
        lines.append(line)
    total = sum(choice.num_rows for choice in choices)
    decided = sum(choice.num_rows for choice in choices if choice.by_reward)
    tried = sum(choice.num_tried for choice in choices)
    lines.append(
        f"{total:,} rows got a teacher, {tried:,} of them were tried by every expert; the reward decided "
        f"{decided / max(1, total):.0%}, the likelihood the others."
    )
    return "\n".join(lines)
