from __future__ import annotations

import pytest

from lightning_opd.errors import ConfigError
from lightning_opd.tokenization.compatibility import check_same_vocabulary
from tests.real import fetch

ADDED = ["</think>", "</tool_response>", "<think>", "<tool_response>"]
"""What Qwen 3 has beside Qwen 2.5."""


def test_qwen_2_5_and_qwen_3_teach_each_other_and_a_line_says_what_one_lacks(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    older, newer = fetch.tokenizer("qwen2_5"), fetch.tokenizer("qwen3")
    ours, theirs = older.get_vocab(), newer.get_vocab()
    assert all(theirs[token] == token_id for token, token_id in ours.items())
    assert sorted(theirs.keys() - ours.keys()) == ADDED
    for student, teacher, said in (
        (older, newer, f"added tokens: it has {ADDED} besides."),
        (newer, older, f"added tokens: it lacks {ADDED}, which get no score where they are generated"),
    ):
        caplog.clear()
        check_same_vocabulary(student, teacher, "math")
        assert said in caplog.text + "".join(capsys.readouterr())


@pytest.mark.parametrize(
    ("student", "teacher", "words"),
    [
        ("llama3_1", "llama3_2", r"252 tokens differ \('<\|eom_id\|>': None here, 128008 there"),
        ("llama3_2", "llama3_1", r"252 tokens differ \('<\|eom_id\|>': 128008 here, None there"),
        ("gemma2", "gemma3", r"\d+ tokens differ"),
        ("qwen3", "llama3_1", r"\d+ tokens differ"),
    ],
)
def test_one_family_with_other_ids_is_refused_with_a_way_out(student: str, teacher: str, words: str) -> None:
    """The tokenizer packed as Llama 3.1 keeps the reserved names of Llama 3 at ids that Llama 3.2 has named."""
    with pytest.raises(ConfigError, match=words + r".*Use `CrossTokenizerTeacher`"):
        check_same_vocabulary(fetch.tokenizer(student), fetch.tokenizer(teacher), "math")
