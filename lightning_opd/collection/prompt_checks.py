"""Renders and measures all prompts before any weight is loaded, and decides what becomes of those that are too long."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from lightning_opd.collection.prompt_limits import PromptLimits
from lightning_opd.collection.prompt_report import Found, PromptReport
from lightning_opd.errors import ConfigError
from lightning_opd.models import gather_objects
from lightning_opd.tokenization.chat import render_prompt
from lightning_opd.types import Message, Prompt
from lightning_opd.types.mixtures import mixture_weights

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TEMPLATE_MARGIN = 64
"""Tokens that a template may add to a prompt beyond what it adds to those that were measured."""


@dataclass(frozen=True)
class _Measured:
    """One rendered prompt: its length in tokens, why it cannot be used, characters to leave out, its teacher's more."""

    length: int = 0
    error: str = ""
    num_cut: int = 0
    num_hint: int = 0


def examine_prompts(
    prompts: Sequence[Prompt],
    tokenizer: PreTrainedTokenizerBase,
    limits: PromptLimits,
    teacher_names: Sequence[str] = (),
    rank: int = 0,
    num_ranks: int = 1,
) -> tuple[Sequence[Prompt], PromptReport]:
    """Return the prompts that leave space for a reply, and a report on all.

    Each rank renders its own part of the prompts; all ranks must call it, and all get the same answer.

    Args:
        prompts: Of one split.
        tokenizer: The student's.
        limits: How long they may be.
        teacher_names: Of the teachers there are; empty where nothing is scored.
        rank: This process among those that measure.
        num_ranks: How many there are.
    """
    measured = _measure(prompts, range(len(prompts)), tokenizer, limits, rank, num_ranks)
    long = [i for i, m in measured.items() if m.length > limits.space(prompts[i], m.num_hint)]
    kept: Sequence[Prompt] = prompts
    if long and limits.long_prompts == "drop":
        left_out = set(long)
        kept = [prompt for i, prompt in enumerate(prompts) if i not in left_out]
    elif long and limits.long_prompts == "truncate_left":
        cut = {i: measured[i].num_cut for i in long}
        kept = [_without(prompt, cut[i]) if i in cut else prompt for i, prompt in enumerate(prompts)]
    return kept, _report(prompts, measured, long, limits, tuple(teacher_names))


def _measure(
    prompts: Sequence[Prompt],
    indices: Sequence[int],
    tokenizer: PreTrainedTokenizerBase,
    limits: PromptLimits,
    rank: int,
    num_ranks: int,
) -> dict[int, _Measured]:
    """Return what all ranks together find out about the prompts at some indices, in their order."""
    if limits.max_measured is not None and limits.max_measured < len(indices):
        step = len(indices) / limits.max_measured
        some = [indices[int(i * step)] for i in range(limits.max_measured)]
        everything = replace(limits, max_measured=None)
        found = _measure(prompts, some, tokenizer, everything, rank, num_ranks)
        margin = TEMPLATE_MARGIN + max(0, *(m.length - _most_tokens(prompts[i], limits) for i, m in found.items()))
        rest = (i for i in indices if i not in found)
        doubtful = [i for i in rest if _most_tokens(prompts[i], limits) + margin > limits.space(prompts[i])]
        return dict(sorted((found | _measure(prompts, doubtful, tokenizer, everything, rank, num_ranks)).items()))
    own = {i: _measured(prompts[i], tokenizer, limits) for i in indices[rank::num_ranks]}
    return dict(sorted(item for part in gather_objects(own) for item in part.items()))


def _measured(prompt: Prompt, tokenizer: PreTrainedTokenizerBase, limits: PromptLimits) -> _Measured:
    try:
        length = len(render_prompt(tokenizer, prompt.messages)) + limits.extra(prompt)
        num_hint = _num_hint(prompt, tokenizer, limits, length - limits.extra(prompt))
        is_cut = length > limits.space(prompt, num_hint) and limits.long_prompts == "truncate_left"
        space = limits.space(prompt, num_hint) - limits.extra(prompt)
        return _Measured(length, "", _num_to_cut(tokenizer, prompt, space) if is_cut else 0, num_hint)
    except ConfigError as error:
        return _Measured(error=f"{_name(prompt)}: {error}")


def _num_hint(prompt: Prompt, tokenizer: PreTrainedTokenizerBase, limits: PromptLimits, length: int) -> int:
    """Return the tokens by which its teacher's own prompt is longer; what it lacks is found by another check."""
    own = _hinted(prompt, limits)
    return 0 if own is None else max(0, len(render_prompt(tokenizer, own)) - length)


def _hinted(prompt: Prompt, limits: PromptLimits) -> Sequence[Message] | None:
    teacher = limits.own_prompts.get(prompt.teacher)
    try:
        return None if teacher is None else teacher.messages(prompt, prompt.messages)
    except ConfigError:
        return None


def _outgrown(prompts: Sequence[Prompt], measured: Mapping[int, _Measured], limits: PromptLimits) -> list[str]:
    """Say which teachers cannot read the longest episodes, in which a reply follows on another."""
    found: dict[str, str] = {}
    for i, m in sorted(measured.items(), key=lambda item: -item[1].length - item[1].num_hint):
        name, length = prompts[i].teacher, limits.teacher_length(prompts[i], m.num_hint)
        longest = min(m.length + limits.max_turns * limits.max_new_tokens, limits.max_length)
        if (prompts[i].domain, name) in limits.several_turns and name not in found and longest > length:
            found[name] = (
                f"an episode may grow to {longest:,} tokens (a prompt of {m.length:,}, {limits.max_turns} turns of up "
                f"to {limits.max_new_tokens:,} tokens, and what is answered), more than the {length:,} that teacher "
                f"`{name}` can read of it; `data.sampling.max_episode_tokens: {length}` ends it before"
            )
    return list(found.values())


def _report(
    prompts: Sequence[Prompt],
    measured: dict[int, _Measured],
    long: Sequence[int],
    limits: PromptLimits,
    teacher_names: tuple[str, ...],
) -> PromptReport:
    teachers, domains = Counter[str](), Counter[str]()
    null: list[str] = []
    empty: list[str] = []
    repeated: list[str] = []
    unknown: dict[str, list[str]] = {}
    first: dict[str, str] = {}
    for prompt in prompts:  # once: reading a prompt may cost something
        teachers[prompt.teacher] += 1
        domains[prompt.domain] += 1
        null += [prompt.place] if any(map(_is_null, prompt.messages)) else []
        empty += [] if _words(prompt.messages[-1]).strip() else [prompt.place]
        if prompt.key in first:
            repeated.append(f"{prompt.place} as {first[prompt.key]}" if prompt.place else "")
        first.setdefault(prompt.key, prompt.place)
        if teacher_names and prompt.teacher not in teacher_names:
            for name in mixture_weights(prompt.teacher).keys() - set(teacher_names):
                unknown.setdefault(name, []).append(prompt.place)
    lengths = sorted(m.length for m in measured.values() if not m.error) or [0]
    return PromptReport(
        len(prompts),
        len(measured),
        (lengths[0], lengths[len(lengths) // 2], lengths[-1]),
        teachers,
        domains,
        Found.of([f"{_name(prompts[i])} has {measured[i].length:,} tokens" for i in long]),
        Found.of([m.error for m in measured.values() if m.error]),
        Found.of(null),
        Found.of(empty),
        Found.of(repeated),
        {name: Found.of(places) for name, places in sorted(unknown.items())},
        limits.max_new_tokens,
        limits.max_length,
        limits.long_prompts == "error",
        teacher_names,
        limits.teacher_lengths,
        limits.source,
        tuple(_outgrown(prompts, measured, limits)),
        bool(limits.several_turns),
    )


def _num_to_cut(tokenizer: PreTrainedTokenizerBase, prompt: Prompt, space: int) -> int:
    """Return how many characters at the beginning of its longest message a prompt must lose, as few as fit."""

    def fits(num_characters: int) -> bool:
        return len(render_prompt(tokenizer, _without(prompt, num_characters).messages)) <= space

    low, high = 0, len(_words(prompt.messages[_longest(prompt)]))
    if not fits(high):
        msg = "too long even without its longest message; `truncate_left` cannot help."
        raise ConfigError(msg)
    while low < high:
        middle = (low + high) // 2
        if fits(middle):
            high = middle
        else:
            low = middle + 1
    return high


def _without(prompt: Prompt, num_characters: int) -> Prompt:
    """Return the prompt without the beginning of its longest message."""
    index = _longest(prompt)
    message: Message = {**prompt.messages[index], "content": _words(prompt.messages[index])[num_characters:]}
    return replace(prompt, messages=(*prompt.messages[:index], message, *prompt.messages[index + 1 :]))


def _longest(prompt: Prompt) -> int:
    return max(range(len(prompt.messages)), key=lambda i: len(_words(prompt.messages[i])))


def _most_tokens(prompt: Prompt, limits: PromptLimits) -> int:
    """Return as many tokens as a prompt has bytes, its teacher's own included: each has at least one."""
    longest = max(
        len(str(m).encode("utf-8", "surrogatepass")) for m in (prompt.messages, _hinted(prompt, limits) or "")
    )
    return longest + limits.extra(prompt)


def _name(prompt: Prompt) -> str:
    return prompt.place or f"the prompt that begins with {_words(prompt.messages[-1])[:60]!r}"


def _is_null(message: Message) -> bool:
    return message.get("content") is None and not message.get("tool_calls")


def _words(message: Message) -> str:
    content = message.get("content")
    if isinstance(content, str) or content is None:
        return content or ""
    parts = content if isinstance(content, Sequence) else ()
    return "".join(str(part.get("text", "")) for part in parts if isinstance(part, dict))
