from __future__ import annotations

import functools

import pytest

from lightning_opd.teachers.cross_tokenizer.prefix_tree import prefix_tree
from lightning_opd.teachers.cross_tokenizer.translation import Translator
from lightning_opd.tokenization.chat import render_prompt
from tests.real import fetch, report, tokenizers
from tests.teachers.cross_tokenizer.test_beginnings import RUNS, differences

QUESTION = {"role": "user", "content": "What is 27 + 48?"}


@functools.cache
def translator(student: str, teacher: str) -> Translator:
    return Translator(fetch.tokenizer(student), fetch.tokenizer(teacher))


def test_a_qwen_teacher_reads_a_llama_students_reply_as_its_own() -> None:
    """Assembled from the student's tokens or from text, it would read `<th`, `ink`, `>`."""
    both = translator("llama3_1", "qwen3")
    stop = both.student.get_vocab()["<|eot_id|>"]
    token_ids = [*both.student_spelling.encode(b"It is 75, surely."), stop]
    translation = both.reply(token_ids)
    reply = {"role": "assistant", "content": "It is 75, surely."}
    whole = both.teacher.apply_chat_template([QUESTION, reply], tokenize=False)
    assert both.prompt([QUESTION]) + translation.token_ids == both.teacher.encode(str(whole).rstrip("\n"))
    shown = both.teacher.convert_ids_to_tokens(translation.token_ids)
    assert shown[:4] == ["<think>", "ĊĊ", "</think>", "ĊĊ"]
    aligned = [i for ours, _ in translation.alignment.spans for i in ours]
    assert aligned == list(range(len(token_ids))), "the end of the turn, too"


@pytest.mark.parametrize("nasty", tokenizers.NASTY, ids=ascii)
@pytest.mark.parametrize(("student", "teacher"), [("llama3_1", "qwen3"), ("gemma3", "qwen3"), ("qwen3", "gemma3")])
def test_scoring_goes_on_after_a_character_that_one_side_normalises(student: str, teacher: str, nasty: str) -> None:
    both = translator(student, teacher)
    token_ids = both.student_spelling.encode(f"R = 5 {nasty} and 27 more words follow".encode())
    translation = both.reply(token_ids)
    aligned = {i for ours, _ in translation.alignment.spans for i in ours}
    after = len(both.student_spelling.encode(b" 27 more words follow"))  # Gemma has a token for `▁` and a space
    assert set(range(len(token_ids) - after, len(token_ids))) <= aligned
    (segment,) = prefix_tree(both, token_ids).segments
    assert all(segment.is_same[-after:])


def test_a_llama_students_prompt_is_rendered_by_the_teacher() -> None:
    both = translator("llama3_1", "qwen3")
    assert both.prompt([QUESTION]) == render_prompt(both.teacher, [QUESTION])


def test_the_table_of_tokenizers_is_what_the_code_does() -> None:
    assert tokenizers.markdown() == report.written("tokenizers", report.README.read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", tokenizers.FAMILIES)
def test_beginnings_of_real_texts_have_the_tokens_of_the_whole_beginning(name: str) -> None:
    both = translator(name, name)
    text = "\n".join(tokenizers.TEXTS).encode()
    for part in (text[:2000], text[2001:4000], *(one.encode() for one in tokenizers.TEXTS)):
        wrong, _ = differences(both.teacher_spelling, both.teacher_beginnings, part)
        assert not wrong


@pytest.mark.parametrize("name", tokenizers.FAMILIES)
def test_only_the_end_of_a_long_run_is_tokenised_anew(name: str) -> None:
    both = translator(name, name)
    for run in RUNS:
        wrong, longest = differences(both.teacher_spelling, both.teacher_beginnings, f"It is {run} and so on.".encode())
        assert not wrong, run
        assert longest < 384, run
