"""What a reply only thinks, and what it says."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from lightning_opd.tokenization.template_cache import by_template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Tags = tuple[str, str]

THINK: Tags = ("<think>", "</think>")

KNOWN_TAGS: tuple[Tags, ...] = (
    THINK,
    ("[THINK]", "[/THINK]"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|channel>thought", "<channel|>"),
    ("<|channel|>analysis<|message|>", "<|end|>"),
    ("<thinking>", "</thinking>"),
)
"""What opens and closes a thought, by model family."""


@by_template
def thought_tags(tokenizer: PreTrainedTokenizerBase) -> Tags:
    """Return what opens and closes a thought: what the chat template writes, otherwise what are tokens."""
    template, tokens = str(tokenizer.chat_template or ""), tokenizer.get_added_vocab()
    written = (tags for tags in KNOWN_TAGS if all(tag in template for tag in tags))
    known = (tags for tags in KNOWN_TAGS if all(tag in template or tag in tokens for tag in tags))
    return next(written, next(known, THINK))


def opens_thought(prompt: str, tags: Tags = THINK) -> bool:
    r"""Return whether a prompt's text ends inside a thought, so that the reply begins in it.

    Example:
        >>> opens_thought("<|im_start|>assistant\n<think>\n"), opens_thought("<think>\n\n</think>\n\n")
        (True, False)
    """
    return prompt.rstrip().endswith(tags[0])


def split_thoughts(text: str, tags: Tags = THINK, *, is_open: bool = False) -> tuple[str, str]:
    """Return a reply's thoughts and the rest, both as they stand there.

    What a thought mentions, another opening tag included, belongs to the thought; one that is never closed goes on to
    the end.

    Args:
        text: The reply.
        tags: What opens and closes a thought.
        is_open: Whether the prompt opened one already.

    Example:
        >>> split_thoughts("<think>Is <think> a tag?</think>Yes.")
        ('<think>Is <think> a tag?</think>', 'Yes.')
        >>> split_thoughts("Perhaps. </think>Yes.", is_open=True)
        ('Perhaps. </think>', 'Yes.')
    """
    open_tag, close_tag = tags
    thoughts: list[str] = []
    said: list[str] = []
    start = 0
    while True:
        if not is_open:
            before, found, end = until(text, open_tag, start)
            said.append(before)
            if not found:
                return "".join(thoughts), "".join(said)
            thoughts.append(open_tag)
            start = end
        _, found, end = until(text, close_tag, start)
        thoughts.append(text[start:end])
        is_open, start = False, end
        if not found:
            return "".join(thoughts), "".join(said)


def until(text: str, tag: str, start: int) -> tuple[str, bool, int]:
    """Return the text from `start` up to the next tag, whether there is one, and where it ends; else all the rest.

    Nothing but the text between is copied, so that reading a reply tag by tag stays linear in its length.

    Args:
        text: A whole reply.
        tag: What to look for.
        start: Where to begin.
    """
    found = text.find(tag, start)
    return (text[start:], False, len(text)) if found < 0 else (text[start:found], True, found + len(tag))


def count_thoughts(text: str, tags: Tags = THINK, *, is_open: bool = False) -> int | None:
    """Return how many thoughts a reply closes, or None where tags are not in pairs."""
    found = ([tags[0]] if is_open else []) + re.findall("|".join(map(re.escape, tags)), text)
    return len(found) // 2 if found == list(tags) * (len(found) // 2) else None
