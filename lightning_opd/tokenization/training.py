"""Trains a small tokenizer, for tasks without a pretrained model."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from lightning_opd.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
NUM_BYTES = 256
CHATML = (
    "{% if tools %}"
    "{{ '<|im_start|>system\\nYou may call these functions:\\n<tools>' }}"
    "{% for tool in tools %}{{ '\\n' + (tool | tojson) }}{% endfor %}"
    '{{ \'\\n</tools>\\nCall one by <tool_call>{"name": …, "arguments": {…}}</tool_call>.<|im_end|>\\n\' }}'
    "{% endif %}"
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def train_tokenizer(
    texts: Iterable[str],
    vocab_size: int = 384,
    special_tokens: Sequence[str] = (),
    max_merge: int | None = None,
) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE with the ChatML template; it can encode any text.

    Digits are single tokens, so that numbers of one length have one tokenisation, and no token holds
    parts of two words.

    Args:
        texts: What to train on.
        vocab_size: All tokens, the 256 bytes and the special ones included.
        special_tokens: Further control tokens, such as `<think>`, besides those of ChatML.
        max_merge: Let tokens run across digits, words and punctuation instead, up to so many bytes.

    Raises:
        ValueError: The vocabulary is too small for bytes and special tokens.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    control = [*SPECIAL_TOKENS, *special_tokens]
    wrong = [token for token in special_tokens if not token.strip() or control.count(token) > 1]
    if wrong:
        msg = f"`special_tokens` must be different words besides those of ChatML, got {wrong[0]!r}. Leave it out."
        raise ConfigError(msg)
    if max_merge is not None and max_merge < 1:
        msg = f"`max_merge` must be at least 1 byte, got {max_merge}. Leave it out to keep words apart."
        raise ConfigError(msg)
    smallest = NUM_BYTES + len(control)
    if vocab_size < smallest:
        needed = f"{NUM_BYTES} bytes and {len(control)} special tokens"
        msg = f"`vocab_size` must be at least {smallest} ({needed}), got {vocab_size}."
        raise ConfigError(msg)
    tokenizer = Tokenizer(models.BPE())
    borders = [pre_tokenizers.Digits(individual_digits=True)] if max_merge is None else []
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [*borders, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=max_merge is None)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=control,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
        max_token_length=max_merge,
    )
    between = re.compile("|".join(map(re.escape, control)))  # control tokens take no part in the merges
    tokenizer.train_from_iterator((piece for text in texts for piece in between.split(text)), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|endoftext|>",  # a vocabulary entry
        eos_token="<|im_end|>",  # a vocabulary entry
        chat_template=CHATML,
        clean_up_tokenization_spaces=False,
    )
