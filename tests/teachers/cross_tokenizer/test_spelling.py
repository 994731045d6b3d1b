from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from lightning_opd.models import load_tokenizer
from lightning_opd.teachers.cross_tokenizer.roles import control_tokens
from lightning_opd.teachers.cross_tokenizer.spelling import ByteSpelling, byte_alphabet, spans_of
from tests.teachers.cross_tokenizer.families import CONTROL, FAMILIES, family

every_family = pytest.mark.parametrize("name", FAMILIES)


def spelling(name: str) -> ByteSpelling:
    return ByteSpelling(family(name), control_tokens(family(name)).values())


def spelt(speller: ByteSpelling, token_ids: list[int]) -> bytes:
    return b"".join(map(speller.token_bytes, token_ids))


@every_family
@given(text=st.text())
def test_tokens_of_any_text_spell_its_bytes(name: str, text: str) -> None:
    """SentencePiece cannot write its own mark for a space."""
    speller, text = spelling(name), text.replace("▁", "_")
    assert spelt(speller, speller.encode(text.encode())) == text.encode()


@every_family
def test_runs_of_spaces_and_line_breaks_are_kept(name: str) -> None:
    for text in ("", " ", "   ", "\n\n", " \t ", "a  b", "  a", "a  ", " 7"):
        assert spelt(spelling(name), spelling(name).encode(text.encode())) == text.encode()


@every_family
def test_text_that_looks_like_a_control_token_stays_text(name: str) -> None:
    speller = spelling(name)
    for token in (*CONTROL[name], "<think>", "<tool_call>"):
        token_ids = speller.encode(f"a{token}b".encode())
        assert not speller.control_ids & set(token_ids)
        assert spelt(speller, token_ids) == f"a{token}b".encode()
    for token_id in speller.control_ids:
        assert speller.token_bytes(token_id) == b""


@every_family
@given(text=st.binary(max_size=8))
def test_bytes_that_are_no_characters_have_tokens_too(name: str, text: bytes) -> None:
    speller = spelling(name)
    assert spelt(speller, speller.encode(text)) == text


def test_the_byte_alphabet_is_that_of_the_tokenizers_library() -> None:
    alphabet = byte_alphabet()
    assert set(alphabet) == set(pre_tokenizers.ByteLevel.alphabet())
    assert sorted(alphabet.values()) == list(range(256))
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    text = "".join(map(chr, [*range(0x180), 0x2603, 0x1F600]))
    assert bytes(alphabet[c] for c in byte_level.pre_tokenize_str(text)[0][0]) == text.encode()


def test_an_id_without_a_token_spells_nothing() -> None:
    assert spelling("chatml").token_bytes(10_000) == b""


def with_added(*tokens: AddedToken) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer.from_str(family("llama3").backend_tokenizer.to_str())
    tokenizer.add_tokens(list(tokens))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|eot_id|>")


def test_added_tokens_that_are_text_stay_text_and_keep_their_ids() -> None:
    """Leaving control tokens out would number the others anew."""
    tokenizer = with_added(
        AddedToken("<ctl>", special=True),
        AddedToken("    ", normalized=False, special=False),
        AddedToken("<table>", special=False),
    )
    speller = ByteSpelling(tokenizer, control_tokens(tokenizer).values())
    text = "x    <table><ctl> é"
    token_ids = speller.encode(text.encode())
    assert tokenizer.convert_tokens_to_ids("    ") in token_ids
    assert tokenizer.convert_tokens_to_ids("<table>") in token_ids
    assert tokenizer.convert_tokens_to_ids("<ctl>") not in token_ids
    assert spelt(speller, token_ids) == text.encode()


@pytest.mark.parametrize(
    "prefix",
    [{"normalizer": normalizers.Prepend("▁")}, {"pre_tokenizer": pre_tokenizers.Metaspace()}],
    ids=["old", "new"],
)
def test_no_space_is_put_before_a_segment_of_text(prefix: dict[str, Any]) -> None:
    tokenizer = Tokenizer.from_str(family("gemma").backend_tokenizer.to_str())
    for part, value in prefix.items():
        setattr(tokenizer, part, value)
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>")
    assert wrapped.convert_ids_to_tokens(wrapped.encode("7"))[0].startswith("▁")
    speller = ByteSpelling(wrapped, control_tokens(wrapped).values())
    assert spelt(speller, speller.encode(b"7")) == b"7"


def test_a_normalising_tokenizer_is_followed_as_far_as_it_spells_the_text() -> None:
    tokenizer = Tokenizer.from_str(family("llama3").backend_tokenizer.to_str())
    tokenizer.normalizer = normalizers.NFC()
    speller = ByteSpelling(PreTrainedTokenizerFast(tokenizer_object=tokenizer), ())
    text = "one e\N{COMBINING ACUTE ACCENT} two"
    spans = spans_of([speller.token_bytes(i) for i in speller.encode(text.encode())], text.encode())
    assert max(end for _, end in spans) == len("one ")
    assert spans[-1] == (4, 4)


def test_a_tokenizer_that_does_not_spell_bytes_is_refused() -> None:
    words = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    with pytest.raises(ValueError, match="byte-level or SentencePiece tokenizer"):
        ByteSpelling(PreTrainedTokenizerFast(tokenizer_object=words), ())
    words.decoder = decoders.WordPiece()
    with pytest.raises(ValueError, match="WordPiece"):
        ByteSpelling(PreTrainedTokenizerFast(tokenizer_object=words), ())


def test_a_saved_tokenizer_spells_the_same(tmp_path: Path) -> None:
    for name in FAMILIES:
        family(name).save_pretrained(tmp_path / name)
        loaded = load_tokenizer(str(tmp_path / name))
        again = ByteSpelling(loaded, control_tokens(loaded).values())
        assert again.encode(b"27 + 48 <think>") == spelling(name).encode(b"27 + 48 <think>")
        assert again.control_ids == spelling(name).control_ids


def test_half_a_character_loses_what_follows() -> None:
    assert spans_of([b"a", b"\xc3", b"b"], b"a\xef\xbf\xbdb") == [(0, 1), (1, 1), (1, 1)]
    assert spans_of([], b"ab") == []
