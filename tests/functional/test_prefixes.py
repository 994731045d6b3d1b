from __future__ import annotations

import random

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lightning_opd.functional.prefixes import UNSETTLED, UNSPELT, Pieces, PrefixGrader, PrefixGrades, Reply, Stretch
from lightning_opd.tokenization.translation import Translation, Translator
from tests.functional.texts import TEXTS, WORLDS, Texts
from tests.tokenization.random_pairs import random_tokenizer, random_translator, seeds, texts

STOP = "<|im_end|>"


def test_pieces_are_found_by_how_they_begin() -> None:
    pieces = Pieces([b"b", b"", b"ab", b"a", b"abc", b"abd", b"b"])
    assert [pieces.pieces[i] for i in pieces.beginning_with(b"ab")] == [b"ab", b"abc", b"abd"]
    assert [pieces.order[i] for i in pieces.spelling(b"b")] == [0, 6]
    assert pieces.longer_than(b"a") == (b"ab",)
    assert pieces.longer_than(b"ab") == (b"abc", b"abd")
    assert pieces.first_tokens(b"abx") == [2]
    assert sorted(pieces.first_tokens(b"ab")) == [2, 4, 5]
    assert pieces.first_tokens(b"x") == []


# --- the enumerable world: see also test_credit.py -------------------------------------------------


@pytest.mark.parametrize("world", WORLDS)
def test_every_known_probability_is_exact(world: str) -> None:
    num_known = 0
    for seed in range(5):
        texts_ = Texts(*WORLDS[world], seed=seed)
        sequences, vocabulary = texts_.student.sequences, texts_.student.vocabulary()
        mass = [float(x.sum().exp()) for x in texts_.teacher_logprobs]

        def begins_like(tokens: list[str], sequences: list = sequences, mass: list = mass) -> float:
            return sum(m for s, m in zip(sequences, mass, strict=True) if s[: len(tokens)] == tokens)

        for sequence, known in zip(sequences, texts_.prefix_distributions, strict=True):
            for i, row in enumerate(known.tolist()):
                exact = [begins_like([*sequence[:i], token]) / begins_like(sequence[:i]) for token in vocabulary]
                assert row[vocabulary.index(sequence[i])] > 0
                for expected, got in zip(exact, row, strict=True):
                    assert got == 0 or got == pytest.approx(expected, abs=1e-12, rel=2 * UNSETTLED)
                    num_known += got > 0
    assert num_known > 2 * len(TEXTS) * 5


# --- random tokenizers -----------------------------------------------------------------------------


def grader_of(both: Translator) -> PrefixGrader:
    sides = (both.student_spelling, both.student), (both.teacher_spelling, both.teacher)
    ours, theirs = (Pieces([spelling.piece(i) for i in range(len(tokenizer))]) for spelling, tokenizer in sides)
    return PrefixGrader(ours, theirs, both.roles.pairs)


def graded(
    both: Translator, token_ids: list[int], seed: int
) -> tuple[Translation, Reply, PrefixGrades, torch.Tensor, PrefixGrader]:
    """Grade a reply by random distributions of the teacher, and give every known probability."""
    translation, generator = both.reply(token_ids), torch.Generator().manual_seed(seed)
    theirs = [i for i, counts in zip(translation.token_ids, translation.response_mask, strict=True) if counts]
    logits = 3 * torch.randn(len(theirs), len(both.teacher), generator=generator, dtype=torch.float64)
    table, grader = torch.log_softmax(logits, dim=-1), grader_of(both)
    logprobs = table.gather(1, torch.tensor(theirs, dtype=torch.long)[:, None]).squeeze(1)
    reply = Reply(token_ids, translation.stretches, translation.controls, logprobs, grader.sort(table))
    grades = grader.grade(reply)
    return translation, reply, grades, grader.distributions(reply, grades), grader


@settings(max_examples=150, deadline=None)
@given(student=seeds, teacher=seeds, text=texts, seed=st.integers(0, 99))
def test_grades_of_any_text_add_up_to_its_log_prob(student: int, teacher: int, text: str, seed: int) -> None:
    assume(student != teacher)
    both = random_translator(student, teacher)
    token_ids = [*both.student_spelling.encode(text.encode()), both.student.convert_tokens_to_ids(STOP)]
    _, reply, grades, known, _ = graded(both, token_ids, seed)
    assert grades.is_graded.all()
    assert grades.logprobs.max() <= 1e-9
    assert float(grades.logprobs.sum()) == pytest.approx(float(reply.teacher_logprobs.sum()), abs=1e-8)
    assert float(known.sum(dim=1).max()) <= 1 + 1e-9
    own = known.gather(1, torch.tensor(token_ids)[:, None]).squeeze(1)
    assert (own <= grades.logprobs.exp() + 1e-12).all()
    assert (own >= grades.logprobs.exp() * 0.5).all()


@settings(max_examples=150, deadline=None)
@given(
    student=seeds,
    teacher=seeds,
    noise=st.randoms(use_true_random=False),
    length=st.integers(0, 20),
    seed=st.integers(0, 9),
)
def test_whatever_a_student_emits_gets_finite_grades(
    student: int, teacher: int, noise: random.Random, length: int, seed: int
) -> None:
    assume(student != teacher)
    both = random_translator(student, teacher)
    token_ids = [noise.randrange(len(random_tokenizer(student))) for _ in range(length)]
    translation, _, grades, known, _ = graded(both, token_ids, length)
    assert torch.isfinite(grades.logprobs).all()
    assert ((known >= 0) & (known <= 1 + 1e-9)).all()
    assert (known.sum(dim=1) <= 1 + 1e-9).all()
    assert not grades.logprobs[~grades.is_graded].any()
    for stretch in translation.stretches:
        for i, is_native in enumerate(stretch.is_native):
            assert is_native or float(grades.logprobs[stretch.first_student + i]) <= UNSPELT + 1e-9


def test_no_token_answers_for_what_follows_it() -> None:
    """The teacher merges "ab": "a" before "b" is no absurdity, and "a" before "c" no certainty."""
    grader = PrefixGrader(Pieces([b"a", b"b", b"c"]), Pieces([b"a", b"b", b"c", b"ab"]))
    first, second = torch.tensor([[0.05, 0.05, 0.1, 0.8], [0.2, 0.1, 0.6, 0.1]]).log().double()
    merged = Stretch(b"ab", [(0, 1), (1, 2)], [(0, 2)], [True, True], 0, 0, has_next=False)
    grades = grader.grade(Reply([0, 1], [merged], [], first[3:], grader.sort(first[None])))
    assert grades.logprobs.exp().tolist() == pytest.approx([0.85, 0.8 / 0.85])
    cut = Stretch(b"ac", [(0, 1), (1, 2)], [(0, 1), (1, 2)], [True, True], 0, 0, has_next=False)
    logprobs = torch.stack([first[0], second[2]])
    grades = grader.grade(Reply([0, 2], [cut], [], logprobs, grader.sort(torch.stack([first, second]))))
    assert grades.logprobs.exp().tolist() == pytest.approx([0.85, 0.05 * 0.6 / 0.85])
