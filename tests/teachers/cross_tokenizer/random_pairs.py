"""Random byte-pair encodings, and texts that both of a pair can tokenise."""

from __future__ import annotations

import functools
import random

import torch
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from lightning_opd.teachers.cross_tokenizer.prefix_distributions import PrefixDistributions
from lightning_opd.teachers.cross_tokenizer.prefix_probabilities import PrefixProbabilities, Reply
from lightning_opd.teachers.cross_tokenizer.prefix_scores import PrefixScores, prefix_scores
from lightning_opd.teachers.cross_tokenizer.prefix_tree import PrefixTree, prefix_tree
from lightning_opd.teachers.cross_tokenizer.token_bytes import TokenBytes
from lightning_opd.teachers.cross_tokenizer.translation import Translator
from tests.teachers.cross_tokenizer.families import TEMPLATES
from tests.teachers.cross_tokenizer.texts import rows_of

NUM_RANDOM = 16


@functools.cache
def random_tokenizer(seed: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE of random merges, mostly of bytes that texts are full of."""
    noise = random.Random(seed)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    noise.shuffle(alphabet)
    likely = [c for c in alphabet if c in '0123456789abcdefABÃðŁĺĠĊ"{}:,'] or alphabet
    vocabulary = {c: i for i, c in enumerate(alphabet)}
    merges: list[tuple[str, str]] = []
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


def merged_texts() -> list[str]:
    """Return the longest texts that are one token each: a teacher that merges so reads beginnings otherwise."""
    longest = []
    for seed in range(NUM_RANDOM):
        spelling = random_translator(seed, seed).student_spelling
        tokens = {spelling.token_bytes(i).decode(errors="replace") for i in range(len(random_tokenizer(seed)))}
        longest += sorted((token for token in tokens if "�" not in token), key=len)[-4:]
    return sorted(set(longest))


seeds = st.integers(0, NUM_RANDOM - 1)
pairs = seeds.map(lambda seed: (seed, (7 * seed + 3) % NUM_RANDOM))
"""One teacher for each student, other than itself: setting a pair up takes longer than a text."""

texts = st.lists(
    st.one_of(st.text(max_size=12), st.text('0123456789 abc{}:"é😀\n', max_size=12), st.sampled_from(merged_texts()))
).map("".join)


@functools.cache
def sums_of(both: Translator) -> PrefixProbabilities:
    sides = (both.student_spelling, both.student), (both.teacher_spelling, both.teacher)
    student, teacher = (TokenBytes([s.token_bytes(i) for i in range(len(tokenizer))]) for s, tokenizer in sides)
    return PrefixProbabilities(student, teacher)


@functools.cache
def distributions_of(both: Translator) -> PrefixDistributions:
    return PrefixDistributions(sums_of(both), both.roles.pairs)


def random_reply(both: Translator, token_ids: list[int], seed: int, scale: float = 3.0) -> tuple[PrefixTree, Reply]:
    """Return a reply's tree, and the reply under random distributions of the teacher."""
    tree, generator = prefix_tree(both, token_ids), torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(len(tree.token_ids), len(both.teacher), generator=generator, dtype=torch.float64)
    table = torch.log_softmax(logits, dim=-1)
    before = [0.0]
    for parent, token_id in zip(tree.parents[1:], tree.token_ids[1:], strict=True):
        before.append(before[parent] + float(table[parent, token_id]))
    return tree, Reply(token_ids, tree.segments, tree.controls, before, rows_of(table))


def scored(
    both: Translator, token_ids: list[int], seed: int, scale: float = 3.0
) -> tuple[PrefixTree, Reply, PrefixScores, Tensor]:
    """Score a reply by random distributions of the teacher, and give every known probability."""
    tree, reply = random_reply(both, token_ids, seed, scale)
    token_scores = prefix_scores(reply, sums_of(both))
    return tree, reply, token_scores, distributions_of(both)(reply, token_scores)
