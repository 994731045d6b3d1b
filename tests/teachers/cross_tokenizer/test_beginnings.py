from __future__ import annotations

import base64
import functools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from lightning_opd.teachers.cross_tokenizer.beginnings import Beginnings
from lightning_opd.teachers.cross_tokenizer.spelling import ByteSpelling
from tests.teachers.cross_tokenizer.families import FAMILIES, family
from tests.teachers.cross_tokenizer.random_pairs import merged_texts, random_translator, seeds
from tests.tiny import TEXTS

WORDS = (
    "what",
    " is",
    "12",
    "-",
    "'s",
    " ",
    "   ",
    "\n",
    "\n\n",
    ", ",
    "é",
    "你好",
    "。",
    "😀",
    "(a)",
    "3.14",
    "▁",
    "\r\n",
)


@functools.cache
def beginnings_of(name: str) -> tuple[ByteSpelling, Beginnings]:
    tokenizer: PreTrainedTokenizerFast = family(name)
    spelling = ByteSpelling(tokenizer, tokenizer.all_special_ids)
    return spelling, Beginnings(spelling)


def differences(spelling: ByteSpelling, beginnings: Beginnings, text: bytes) -> tuple[list[bytes], int]:
    """Return the beginnings with other tokens than from the start of the text, and the most bytes encoded for one."""
    whole = spelling.encode(text)
    if b"".join(map(spelling.token_bytes, whole)) != text:
        return [], 0
    before: dict[int, list[int]] = {0: []}
    wrong, longest, last = [], 0, 0
    for length, (start, passed, last_ids) in enumerate(beginnings(text, whole), 1):
        for end, of_word in passed:
            before[end], last = before[last] + of_word, end
        longest = max(longest, length - start)
        if before[start] + last_ids != spelling.encode(text[:length]):
            wrong.append(text[:length])
    return wrong, longest


sentences = st.lists(st.one_of(st.sampled_from(WORDS), st.sampled_from(TEXTS), st.text(max_size=8)), max_size=30)


@settings(deadline=None, max_examples=20)
@given(name=st.sampled_from(FAMILIES), words=sentences)
def test_last_words_have_the_tokens_of_the_whole_beginning(name: str, words: list[str]) -> None:
    wrong, _ = differences(*beginnings_of(name), "".join(words).encode())
    assert not wrong


@settings(deadline=None, max_examples=20)
@given(seed=seeds, words=st.lists(st.sampled_from([*WORDS, *merged_texts()]), max_size=30), cut=st.integers(0, 3))
def test_random_tokenizers_that_merge_over_words_have_them_too(seed: int, words: list[str], cut: int) -> None:
    """Bytes that are no characters included."""
    text = "".join(words).encode()
    spelling = random_translator(seed, (7 * seed + 3) % 16).teacher_spelling
    wrong, _ = differences(spelling, Beginnings(spelling), text[cut:])
    assert not wrong


@pytest.mark.parametrize("name", FAMILIES)
def test_only_the_last_words_of_a_long_text_are_tokenised_anew(name: str) -> None:
    text = "".join(f"What is {i} + {i % 7}? It is (about) {i + i % 7},\n" for i in range(40)).encode()
    wrong, longest = differences(*beginnings_of(name), text)
    assert not wrong
    assert longest < 64 < len(text) // 10


RUNS = (
    "中文文本没有空格因此一个分词器会把它们当作很长的一段来处理这对我们的算法来说是一个困难的例子" * 4,
    "31415926535897932384626433832795028841971693993751" * 8,
    "ภาษาไทยไม่มีช่องว่างระหว่างคำดังนั้น" * 5,
    "." * 400,
    " " * 400,
    "≠≠abc" * 60,
    "٣١٤" * 60,
    random.Random(1).randbytes(200).hex(),
    base64.b64encode(random.Random(0).randbytes(300)).decode(),
)
"""Text in which no word ends for long."""


@pytest.mark.parametrize("name", FAMILIES)
def test_only_the_end_of_a_long_run_is_tokenised_anew(name: str) -> None:
    for run in RUNS:
        text = f"It is {run} and so on.".encode()
        wrong, longest = differences(*beginnings_of(name), text)
        assert not wrong, run
        assert longest < 256, run


@settings(deadline=None, max_examples=30)
@given(
    seed=seeds,
    parts=st.lists(st.sampled_from([*"0123ab中≠é.", *merged_texts()]), min_size=4, max_size=30),
    n=st.integers(2, 6),
)
def test_runs_have_the_tokens_of_the_whole_beginning_under_random_tokenizers(
    seed: int, parts: list[str], n: int
) -> None:
    spelling = random_translator(seed, (7 * seed + 3) % 16).teacher_spelling
    wrong, _ = differences(spelling, Beginnings(spelling), ("".join(parts) * n).encode()[:500])
    assert not wrong


def test_a_cut_that_a_beginning_does_not_respect_is_given_up() -> None:
    """Digits in groups of three from the right: the groups of a beginning are not those of the whole run."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    digits = "0123456789"
    pairs = [(a, b) for a in digits for b in digits]
    triples = [(a + b, c) for a, b in pairs for c in digits]
    vocabulary = {token: i for i, token in enumerate([*alphabet, *map("".join, pairs), *map("".join, triples)])}
    backend = Tokenizer(models.BPE(vocabulary, [*pairs, *triples]))
    groups = pre_tokenizers.Split(Regex(r"\d{1,3}(?=(?:\d{3})*(?!\d))"), "isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [groups, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    backend.decoder = decoders.ByteLevel()
    spelling = ByteSpelling(PreTrainedTokenizerFast(tokenizer_object=backend), ())
    run = RUNS[1].encode()
    assert [len(spelling.token_bytes(i)) for i in spelling.encode(run[:7])] == [1, 3, 3]
    wrong, _ = differences(spelling, Beginnings(spelling), run)
    assert not wrong


def test_a_word_does_not_end_where_a_token_reaches_over_its_end() -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*alphabet, "Ġb", "aĠb", "aĠ"])}
    backend = Tokenizer(models.BPE(vocabulary, [("Ġ", "b"), ("a", "Ġb"), ("a", "Ġ")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    spelling = ByteSpelling(PreTrainedTokenizerFast(tokenizer_object=backend), ())
    assert not spelling.splits("a", " ")
    assert spelling.splits("b", " ")
    wrong, longest = differences(spelling, Beginnings(spelling), b"cb cb a b a c a b" * 8)
    assert not wrong
    assert longest < 64
