from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from lightning_opd.models import load_tokenizer
from lightning_opd.tokenization.training import train_tokenizer
from tests.tiny import SPECIAL_TOKENS, TEXTS


@cache
def tokenizer() -> PreTrainedTokenizerBase:
    return train_tokenizer(TEXTS, vocab_size=288, special_tokens=SPECIAL_TOKENS)


@given(st.text())
def test_any_text_decodes_back(text: str) -> None:
    """Also text in scripts that the training corpus lacks."""
    assert tokenizer().decode(tokenizer().encode(text), clean_up_tokenization_spaces=False) == text


def test_every_byte_has_a_token() -> None:
    text = "".join(map(chr, range(0x250))) + "\N{SNOWMAN}\N{GRINNING FACE}"
    assert tokenizer().decode(tokenizer().encode(text), clean_up_tokenization_spaces=False) == text


def test_each_tag_and_each_digit_is_one_token() -> None:
    for tag in (*SPECIAL_TOKENS, "<|im_start|>", "<|im_end|>", "<|endoftext|>"):
        assert len(tokenizer().encode(tag)) == 1
    assert len(tokenizer().encode("2026")) == 4


def test_stop_and_padding_are_set_and_differ() -> None:
    assert (tokenizer().eos_token, tokenizer().pad_token) == ("<|im_end|>", "<|endoftext|>")


def test_tags_take_no_merges() -> None:
    """Their letters would otherwise be the most frequent pairs of the corpus."""
    texts = ["<tool_call>ab</tool_call>"] * 50
    assert "tool" not in train_tokenizer(texts, 400, SPECIAL_TOKENS).get_vocab()


def test_training_is_reproducible_and_survives_saving(tmp_path: Path) -> None:
    again = train_tokenizer(TEXTS, vocab_size=288, special_tokens=SPECIAL_TOKENS)
    assert again.get_vocab() == tokenizer().get_vocab()
    again.save_pretrained(tmp_path)
    loaded = load_tokenizer(str(tmp_path))
    assert loaded.get_vocab() == again.get_vocab()
    assert (loaded.eos_token, loaded.pad_token) == (again.eos_token, again.pad_token)
    assert loaded.chat_template == again.chat_template
    text = "What is 27 + 48?<think>7+8=15 carry 1</think>"
    assert loaded.encode(text) == again.encode(text)


def test_a_vocabulary_too_small_for_all_bytes_is_refused() -> None:
    with pytest.raises(ValueError, match=r"at least 263 \(256 bytes and 7 special tokens\), got 170"):
        train_tokenizer(TEXTS, 170, SPECIAL_TOKENS)
    assert len(train_tokenizer(TEXTS, 263, SPECIAL_TOKENS)) == 263


def test_tokens_may_run_across_digits_words_and_punctuation_up_to_a_length() -> None:
    texts = ["7+8=15 carry, 27+8=35", '{"result":"15"}'] * 20
    merged = train_tokenizer(texts, 330, SPECIAL_TOKENS, max_merge=6)
    pieces = [str(merged.decode([i])) for i in merged.encode(texts[0] + texts[1])]
    assert "".join(pieces) == texts[0] + texts[1]
    mixed = [piece for piece in pieces if any(map(str.isdigit, piece)) and not piece.isdigit()]
    assert any("=" in piece or "+" in piece for piece in mixed)
    assert any('"' in piece or "," in piece for piece in mixed)
    assert 3 < max(map(len, pieces)) <= 6
    apart = train_tokenizer(texts, 330, SPECIAL_TOKENS)
    pieces = [str(apart.decode([i])) for i in apart.encode(texts[0])]
    assert not any(len(piece) > 1 and any(map(str.isdigit, piece)) for piece in pieces)
