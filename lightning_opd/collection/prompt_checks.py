"""Renders and measures all prompts before any weight is loaded, and decides what becomes of those that are too long."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, TypeAlias

from typing_extensions import override

from lightning_opd.errors import ConfigError
from lightning_opd.tokenization.chat import render_prompt
from lightning_opd.types import Message, Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LongPrompts: TypeAlias = Literal["error", "drop", "truncate_left"]
"""What becomes of a prompt that leaves no space for the reply."""

NUM_SHOWN = 3


@dataclass(frozen=True)
class PromptCounts:
    """What a split's prompts look like to the student.

    Args:
        num_prompts: All of them.
        num_long: Those that leave no space for a reply of `max_new_tokens`.
        num_empty: Those whose last message has no words.
        num_repeated: Those that ask what an earlier one asks.
        lengths: Shortest, median and longest prompt in tokens.
    """

    num_prompts: int
    num_long: int
    num_empty: int
    num_repeated: int
    lengths: tuple[int, int, int]

    @override
    def __str__(self) -> str:
        """Say it in one line."""
        few, median, most = self.lengths
        odd = {"too long": self.num_long, "without words": self.num_empty, "repeated": self.num_repeated}
        parts = [f"{count:,} {name}" for name, count in odd.items() if count]
        return f"{self.num_prompts:,} prompts of {few:,} to {most:,} tokens (median {median:,})" + "".join(
            f", {part}" for part in parts
        )


def fitting_prompts(
    prompts: Sequence[Prompt],
    tokenizer: PreTrainedTokenizerBase,
    max_new_tokens: int,
    max_length: int,
    long_prompts: LongPrompts = "error",
) -> tuple[list[Prompt], PromptCounts]:
    """Return the prompts that leave space for a reply, and counts of all.

    Args:
        prompts: Of one split.
        tokenizer: The student's.
        max_new_tokens: Longest reply in tokens.
        max_length: Longest sequence in tokens.
        long_prompts: Refuse too long ones (`error`), leave them out (`drop`), or leave out the beginning of their
            longest message (`truncate_left`).

    Raises:
        ConfigError: The chat template refuses a prompt, or one is too long; with the file and line.
    """
    space = max_length - max_new_tokens
    kept: list[Prompt] = []
    long: list[tuple[Prompt, int]] = []
    lengths: list[int] = []
    for prompt in prompts:
        lengths.append(_length(tokenizer, prompt))
        if lengths[-1] <= space:
            kept.append(prompt)
            continue
        long.append((prompt, lengths[-1]))
        if long_prompts == "truncate_left":
            kept.append(_truncated(tokenizer, prompt, space))
    if long and long_prompts == "error":
        some = "; ".join(f"{_name(prompt)} has {length:,} tokens" for prompt, length in long[:NUM_SHOWN])
        msg = (
            f"{len(long):,} of {len(prompts):,} prompts are too long: {some}. With `max_new_tokens` "
            f"{max_new_tokens:,} they exceed the student's context of {max_length:,} tokens. Set `data.long_prompts` "
            "to `drop` or `truncate_left`, shorten them, or lower `max_new_tokens`."
        )
        raise ConfigError(msg)
    ordered = sorted(lengths) or [0]
    counts = PromptCounts(
        len(prompts),
        len(long),
        sum(not _words(prompt.messages[-1]).strip() for prompt in prompts),
        len(prompts) - len({prompt.key for prompt in prompts}),
        (ordered[0], ordered[len(ordered) // 2], ordered[-1]),
    )
    return kept, counts


def _length(tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> int:
    try:
        return len(render_prompt(tokenizer, prompt.messages))
    except ConfigError as error:
        if not prompt.place:
            raise
        msg = f"{prompt.place}: {error}"
        raise ConfigError(msg) from error


def _truncated(tokenizer: PreTrainedTokenizerBase, prompt: Prompt, space: int) -> Prompt:
    """Return the prompt without the beginning of its longest message, as little of it as fits."""
    index = max(range(len(prompt.messages)), key=lambda i: len(_words(prompt.messages[i])))
    words = _words(prompt.messages[index])

    def without(num_characters: int) -> Prompt:
        message: Message = {**prompt.messages[index], "content": words[num_characters:]}
        return replace(prompt, messages=(*prompt.messages[:index], message, *prompt.messages[index + 1 :]))

    low, high = 0, len(words)
    if _length(tokenizer, without(high)) > space:
        msg = f"{prompt.place or prompt.key}: too long even without its longest message; `truncate_left` cannot help."
        raise ConfigError(msg)
    while low < high:
        middle = (low + high) // 2
        if _length(tokenizer, without(middle)) <= space:
            high = middle
        else:
            low = middle + 1
    return without(high)


def _name(prompt: Prompt) -> str:
    return prompt.place or f"the prompt that begins with {_words(prompt.messages[-1])[:60]!r}"


def _words(message: Message) -> str:
    content = message.get("content")
    if isinstance(content, str) or content is None:
        return content or ""
    parts = content if isinstance(content, Sequence) else ()
    return "".join(str(part.get("text", "")) for part in parts if isinstance(part, dict))
