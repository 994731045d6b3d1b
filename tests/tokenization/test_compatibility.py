from __future__ import annotations

import re
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase

from lightning_opd.models import load_tokenizer
from lightning_opd.tokenization.compatibility import check_same_vocabulary, check_student_tokenizer, padding_token_id
from lightning_opd.tokenization.training import train_tokenizer
from tests.tiny import SPECIAL_TOKENS, TEXTS


@pytest.fixture
def tokenizer(tiny_tokenizer_dir: Path) -> PreTrainedTokenizerBase:
    return load_tokenizer(str(tiny_tokenizer_dir))


def test_a_complete_tokenizer_passes(tokenizer: PreTrainedTokenizerBase) -> None:
    check_student_tokenizer(tokenizer)
    check_same_vocabulary(tokenizer, tokenizer, "math")


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("eos_token", r"no `eos_token`.*never end.*tokenizer_config\.json"),
        ("chat_template", r"no chat template.*chat_template\.jinja"),
    ],
)
def test_whatever_is_missing_is_named_with_its_cure(
    missing: str, message: str, tokenizer: PreTrainedTokenizerBase
) -> None:
    setattr(tokenizer, missing, None)
    with pytest.raises(ValueError, match=message):
        check_student_tokenizer(tokenizer)


def test_rows_are_filled_up_with_the_stop_token_where_there_is_no_padding_token(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    assert padding_token_id(tokenizer) == tokenizer.pad_token_id
    tokenizer.pad_token = None
    check_student_tokenizer(tokenizer)
    assert padding_token_id(tokenizer) == tokenizer.eos_token_id


def test_vocabularies_of_equal_size_but_other_tokens_are_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    other = train_tokenizer(["zzyzx " * 50, "Quirky vowels jump."], len(tokenizer), SPECIAL_TOKENS[::-1])
    with pytest.raises(ValueError, match=r"Teacher `math` has another vocabulary.*tokens differ \(.* here, .* there"):
        check_same_vocabulary(tokenizer, other, "math")


def test_added_tokens_that_one_side_lacks_are_named_and_allowed(
    tokenizer: PreTrainedTokenizerBase, tiny_tokenizer_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = load_tokenizer(str(tiny_tokenizer_dir))
    other.add_tokens(["<extra>"])
    for student, teacher, words in (
        (tokenizer, other, "added tokens: it has ['<extra>'] besides."),
        (other, tokenizer, "lacks ['<extra>'], which get no score"),
    ):
        caplog.clear()
        with caplog.at_level("INFO"):
            check_same_vocabulary(student, teacher, "code")
        assert re.search(re.escape(words).replace(r"\.\*", ".*"), caplog.text)


def test_added_tokens_of_different_meaning_are_refused(
    tokenizer: PreTrainedTokenizerBase, tiny_tokenizer_dir: Path
) -> None:
    """One id, two tokens."""
    one, other = tokenizer, load_tokenizer(str(tiny_tokenizer_dir))
    one.add_tokens(["<extra>"])
    other.add_tokens(["<other>"])
    with pytest.raises(ValueError, match=r"2 tokens differ \('<extra>': 288 here, None there"):
        check_same_vocabulary(one, other, "code")


def test_another_stop_token_is_refused(tokenizer: PreTrainedTokenizerBase, tiny_tokenizer_dir: Path) -> None:
    other = load_tokenizer(str(tiny_tokenizer_dir))
    other.eos_token = "<|endoftext|>"
    with pytest.raises(ValueError, match=r"`code` stops with '<\|endoftext\|>', the student with '<\|im_end\|>'"):
        check_same_vocabulary(tokenizer, other, "code")


def test_tokenizers_trained_alike_are_the_same(tokenizer: PreTrainedTokenizerBase) -> None:
    check_same_vocabulary(tokenizer, train_tokenizer(TEXTS, 288, SPECIAL_TOKENS), "twin")
