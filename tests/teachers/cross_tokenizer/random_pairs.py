"""Random byte-pair encodings, and texts that both of a pair can cut."""

from __future__ import annotations

import functools
import random

from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from lightning_opd.teachers.cross_tokenizer.translation import Translator
from tests.teachers.cross_tokenizer.families import TEMPLATES

NUM_RANDOM = 16


@functools.cache
def random_tokenizer(seed: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE of random merges, mostly of frequent bytes."""
    noise = random.Random(seed)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    noise.shuffle(alphabet)
    likely = [c for c in alphabet if c in '0123456789abcdefABÃðŁĺĠĊ"{}:,'] or alphabet
    vocabulary, merges = {c: i for i, c in enumerate(alphabet)}, []
    for _ in range(noise.randrange(120)):
        pair = noise.choice([*likely, *map("".join, merges)]), noise.choice([*likely, *map("".join, merges)])
        if "".join(pair) not in vocabulary:
            vocabulary["".join(pair)] = len(vocabulary)
            merges.append(pair)
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=noise.random() < 0.5)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(noise.sample(["<|im_start|>", "<|im_end|>", "<think>", "</s>"], k=4))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", chat_template=TEMPLATES["chatml"]
    )


@functools.cache
def random_translator(student: int, teacher: int) -> Translator:
    return Translator(random_tokenizer(student), random_tokenizer(teacher))


seeds = st.integers(0, NUM_RANDOM - 1)
texts = st.lists(st.one_of(st.text(max_size=12), st.text('0123456789 abc{}:"é😀\n', max_size=12))).map("".join)
