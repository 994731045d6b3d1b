from __future__ import annotations

import functools
import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_opd.teachers.cross_tokenizer.translation import Translation, Translator, each_token
from lightning_opd.tokenization.turn_borders import reply_surroundings
from tests.teachers.cross_tokenizer.families import END_OF_TURN, FAMILIES, family, normalising
from tests.teachers.cross_tokenizer.random_pairs import NUM_RANDOM, random_tokenizer, random_translator, seeds, texts

REPLY = '7+8=15 carry, é😀  "name": "calc"\n\n\tfin'


@functools.cache
def translator(student: str, teacher: str) -> Translator:
    return Translator(family(student), family(teacher))


def check(translation: Translation, translator: Translator, token_ids: list[int], *, is_whole: bool) -> None:
    """Check that aligned spans spell the same bytes, are disjoint, and in order."""
    ours = [translator.student_spelling.token_bytes(i) for i in token_ids]
    kept = [i for i, counts in zip(translation.token_ids, translation.response_mask, strict=True) if counts]
    theirs = [translator.teacher_spelling.token_bytes(i) for i in kept]
    spans = translation.alignment.spans
    for side in (0, 1):
        indices = [i for pair in spans for i in pair[side]]
        assert indices == sorted(set(indices))
        if is_whole:
            assert indices == list(range(len((ours, theirs)[side])))
    for student, teacher in spans:
        assert b"".join(ours[i] for i in student) == b"".join(theirs[i] for i in teacher)
    assert translation.alignment.strict == [(s[0], t[0]) for s, t in spans if len(s) == len(t) == 1]


@pytest.mark.parametrize(("student", "teacher"), list(itertools.product(FAMILIES, repeat=2)))
def test_families_render_and_align_in_all_directions(student: str, teacher: str) -> None:
    both = translator(student, teacher)
    stop = family(student).get_vocab()[END_OF_TURN[student]]
    lead = reply_surroundings(family(student))[0]
    token_ids = [*both.student_spelling.encode((lead + REPLY).encode()), stop]
    translation = both.reply(token_ids)
    aligned = [i for ours, _ in translation.alignment.spans for i in ours]
    assert aligned == list(range(len(token_ids)))[-len(aligned) :]
    assert len(aligned) >= len(token_ids) - len(lead)  # a lone space that the template wants is nobody's
    check(translation, both, token_ids, is_whole=len(aligned) == len(token_ids))
    assert str(family(teacher).decode(translation.token_ids)).strip() == REPLY + END_OF_TURN[teacher]
    assert both.is_identity == (student == teacher)
    if both.is_identity:
        assert translation.token_ids == token_ids
        assert translation.alignment.strict == [(i, i) for i in range(len(token_ids))]
    chat = [{"role": "user", "content": "What?"}]
    prompt = both.prompt(chat)
    expected = family(teacher).apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    assert prompt == family(teacher).encode(expected, add_special_tokens=False)
    native = family(teacher).apply_chat_template([*chat, {"role": "assistant", "content": REPLY}], tokenize=False)
    assert str(native).startswith(str(family(teacher).decode([*prompt, *translation.token_ids])))


def test_a_teacher_without_a_system_role_says_so() -> None:
    with pytest.raises(ValueError, match=r"chat template of .* no system role"):
        translator("chatml", "gemma").prompt([{"role": "system", "content": "x"}, {"role": "user", "content": "y"}])


@pytest.mark.parametrize("teacher", FAMILIES)
def test_a_typed_look_alike_stays_text_and_a_control_token_travels(teacher: str) -> None:
    both, vocabulary = translator("chatml", teacher), family("chatml").get_vocab()
    typed = both.student_spelling.encode(b"<think>a</think><tool_call>")
    emitted = [vocabulary["<think>"], *both.student_spelling.encode(b"a"), vocabulary["</think>"]]
    if not both.is_identity:
        check(both.reply(typed), both, typed, is_whole=True)
        assert not both.roles.teacher_ids & set(both.reply(typed).token_ids)
    theirs = family(teacher).get_vocab()
    if "<think>" in both.teacher_spelling._added.values():
        assert both.reply(emitted).token_ids[0] == theirs["<think>"]
        assert len(both.reply(emitted).alignment.strict) == 3


def test_a_control_token_without_counterpart_is_shown_as_text_and_not_aligned() -> None:
    both, vocabulary = translator("chatml", "llama3"), family("chatml").get_vocab()
    token_ids = [vocabulary["<think>"], *both.student_spelling.encode(b"a"), vocabulary["<|im_end|>"]]
    translation = both.reply(token_ids)
    assert family("llama3").decode(translation.token_ids) == "<think>a<|eot_id|>"
    assert translation.alignment.strict == [(1, 0), (2, 1)]
    num_shown = len(both.teacher_spelling.encode(b"<think>"))
    assert translation.response_mask == [False] * num_shown + [True] * 2


def test_control_tokens_split_the_text() -> None:
    """What the teacher would merge across the border stays apart."""
    both, vocabulary = translator("chatml", "deepseek"), family("chatml").get_vocab()
    digits = both.student_spelling.encode(b"15")
    joined, parted = both.reply(digits), both.reply([digits[0], vocabulary["</think>"], digits[1]])
    assert (len(joined.token_ids), len(parted.token_ids)) == (1, 3)
    assert parted.alignment.strict == [(0, 0), (1, 1), (2, 2)]


def test_what_a_template_puts_before_a_reply_belongs_to_neither_side() -> None:
    both = translator("chatml", "mistral")
    token_ids = both.student_spelling.encode(b"name")
    translation = both.reply(token_ids)
    assert family("mistral").decode(translation.token_ids) == " name"
    check_spans = [(s[0], s[-1]) for s, _ in translation.alignment.spans]
    assert check_spans[0][0] == 0
    back = translator("mistral", "chatml")
    emitted = family("mistral").encode("name", add_special_tokens=False)
    assert family("mistral").convert_ids_to_tokens(emitted)[0].startswith("▁")
    assert family("chatml").decode(back.reply(emitted).token_ids) == "name"


@pytest.mark.parametrize("teacher", [name for name in FAMILIES if name != "chatml"])
def test_half_a_character_is_scored_byte_by_byte(teacher: str) -> None:
    """Else a student could escape its teacher by writing what is no text."""
    both = translator("chatml", teacher)
    emoji = both.student_spelling.encode("😀".encode())
    token_ids = [*emoji[:-1], *both.student_spelling.encode(b"name"), *emoji[-1:]]
    translation = both.reply(token_ids)
    check(translation, both, token_ids, is_whole=True)
    assert len(translation.alignment.strict) >= len(emoji)


NASTY = ("\u2126", "\u212b", "\u09df", "\u095b", "e\u0301", "\u1112\u1161\u11ab", "\u2126\u0301\u212b", "")


@pytest.mark.parametrize("nasty", NASTY, ids=ascii)
@pytest.mark.parametrize("name", ["llama3", "gemma"])
def test_after_a_character_that_the_teacher_normalises_scoring_goes_on(name: str, nasty: str) -> None:
    both, vocabulary = Translator(family("chatml"), normalising(name)), family("chatml").get_vocab()
    parts = [both.student_spelling.encode(text.encode()) for text in ("R = 5 ", nasty, " xyz is 27;")]
    token_ids = [*(i for part in parts for i in part), vocabulary["<|im_end|>"]]
    translation = both.reply(token_ids)
    check(translation, both, token_ids, is_whole=False)
    aligned = {i for s, _ in translation.alignment.spans for i in s}
    around = set(range(len(token_ids))) - set(range(len(parts[0]), len(parts[0]) + len(parts[1])))
    assert around - aligned <= {len(parts[0]) - 1}, "at most the space before it, where the teacher merges the two"
    assert not aligned - around, "what differs is not compared"


def test_half_characters_beside_a_normalised_one_keep_their_places() -> None:
    both = Translator(family("chatml"), normalising("llama3"))
    emoji = both.student_spelling.encode("😀".encode())
    ohm, after = both.student_spelling.encode("\u2126".encode()), emoji[:-1]
    token_ids = [*after, *ohm, *after, *both.student_spelling.encode(b"name")]
    translation = both.reply(token_ids)
    check(translation, both, token_ids, is_whole=False)
    aligned = {i for s, _ in translation.alignment.spans for i in s}
    assert aligned == set(range(len(token_ids))) - set(range(len(after), len(after) + len(ohm)))


def test_a_literal_space_mark_costs_only_itself() -> None:
    both = translator("chatml", "gemma")
    parts = [both.student_spelling.encode(text.encode()) for text in ("ab", "▁", "cd is 27")]
    translation = both.reply([i for part in parts for i in part])
    aligned = [i for s, _ in translation.alignment.spans for i in s]
    assert aligned == [
        *range(len(parts[0])),
        *range(len(parts[0]) + len(parts[1]), sum(map(len, parts))),
    ]


def test_an_empty_reply_is_empty() -> None:
    for student, teacher in itertools.product(FAMILIES, repeat=2):
        assert translator(student, teacher).reply([]) == Translation()


def test_tokens_can_be_translated_one_by_one() -> None:
    both = translator("chatml", "deepseek")
    token_ids = both.student_spelling.encode("15 😀".encode())
    spliced = both.reply(token_ids, split=each_token)
    assert all(len(student) == 1 for student, _ in spliced.alignment.spans)
    assert len(spliced.alignment.spans) == len(token_ids)
    assert spliced.token_ids != both.reply(token_ids).token_ids


@settings(max_examples=60)
@given(student=seeds, first=seeds, text=texts)
def test_random_pairs_partition_random_texts(student: int, first: int, text: str) -> None:
    """Eight teachers for each text: drawing a text takes longer than translating it."""
    for teacher in range(first, first + 8):
        both = random_translator(student, teacher % NUM_RANDOM)
        token_ids = both.student_spelling.encode(text.encode())
        check(both.reply(token_ids), both, token_ids, is_whole=True)


@settings(max_examples=200)
@given(student=seeds, teacher=seeds, noise=st.randoms(use_true_random=False), length=st.integers(0, 30))
def test_whatever_a_student_emits_is_aligned_where_it_can_be(
    student: int, teacher: int, noise: random.Random, length: int
) -> None:
    """Random ids: half characters, control tokens anywhere, and texts that no tokenizer splits that way."""
    both = random_translator(student, teacher)
    token_ids = [noise.randrange(len(random_tokenizer(student))) for _ in range(length)]
    check(both.reply(token_ids), both, token_ids, is_whole=both.is_identity)
    check(both.reply(token_ids, split=each_token), both, token_ids, is_whole=both.is_identity)
