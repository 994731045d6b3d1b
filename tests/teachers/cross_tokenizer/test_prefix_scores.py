from __future__ import annotations

import random

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lightning_opd.functional.advantages import Immediate, LogRatioToGo
from lightning_opd.functional.credit import PrefixCredit
from lightning_opd.teachers.cross_tokenizer.prefix_distributions import PrefixDistributions
from lightning_opd.teachers.cross_tokenizer.prefix_probabilities import PrefixProbabilities, Reply, TextSegment
from lightning_opd.teachers.cross_tokenizer.prefix_scores import NONCANONICAL_LOGPROB, prefix_scores
from lightning_opd.teachers.cross_tokenizer.token_bytes import TokenBytes
from tests.teachers.cross_tokenizer.random_pairs import random_tokenizer, random_translator, scored, seeds, texts
from tests.teachers.cross_tokenizer.texts import WORLDS, Texts, rows_of

STOP = "<|im_end|>"


# --- against enumeration ---------------------------------------------------------------------------


def test_no_token_answers_for_what_follows_it() -> None:
    """The teacher merges "ab": "a" before "b" is no absurdity, and "a" before "c" no certainty."""
    sums = PrefixProbabilities(TokenBytes([b"a", b"b", b"c"]), TokenBytes([b"a", b"b", b"c", b"ab"]))
    first, second = torch.tensor([[0.05, 0.05, 0.1, 0.8], [0.2, 0.1, 0.6, 0.1]]).log().double()
    for text, ids, whole, after_a in ((b"ab", [0, 1], first[3], 0.8 + 0.05 * 0.1), (b"ac", [0, 2], None, 0.05 * 0.6)):
        table = torch.stack([first, second, second])
        before = [0.0, float(first[0]), float(first[0] + second[2] if whole is None else whole)]
        segment = TextSegment(text, [(0, 1), (1, 2)], [True, True], 0, [0, 1, 2], None)
        reply = Reply(ids, [segment], [], before, rows_of(sums.sort(table)))
        token_scores = prefix_scores(reply, sums)
        assert token_scores.logprobs.exp().tolist() == pytest.approx([0.85, after_a / 0.85])
        assert PrefixDistributions(sums)(reply, token_scores)[0].tolist() == pytest.approx([0.85, 0.05, 0.1])


@pytest.mark.parametrize("world", WORLDS)
def test_prefix_log_ratios_to_go_have_the_exact_gradient(world: str) -> None:
    for seed in range(5):
        texts = Texts(*WORLDS[world], seed=seed)
        for token_scores, theirs in zip(texts.prefix_token_scores, texts.teacher_logprobs, strict=True):
            torch.testing.assert_close(token_scores.sum(), theirs.sum(), rtol=0, atol=1e-12)
        exact = texts.exact_gradient()
        torch.testing.assert_close(texts.gradient(PrefixCredit(), LogRatioToGo()), exact, rtol=0, atol=1e-12)


@pytest.mark.parametrize("world", WORLDS)
def test_a_student_that_equals_the_teacher_as_text_gets_no_gradient_from_prefixes(world: str) -> None:
    """Each token's own log-ratio suffices: no other credit does without the whole text's variance."""
    texts = Texts(*WORLDS[world], seed=0)
    assert texts.fixed_point(PrefixCredit(), Immediate(), 200) < 0.01
    for token_scores, own in zip(texts.prefix_token_scores, texts.student.logprobs(texts.logits.detach()), strict=True):
        torch.testing.assert_close(token_scores.exp(), own.exp(), rtol=0, atol=0.03)


# --- random tokenizers -----------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(student=seeds, teacher=seeds, text=texts, seed=st.integers(0, 99), scale=st.sampled_from([3.0, 60.0]))
def test_scores_of_any_text_add_up_to_its_log_prob(
    student: int, teacher: int, text: str, seed: int, scale: float
) -> None:
    """Also where its tokens are less likely than the precision of a sum of probabilities."""
    assume(student != teacher)
    both = random_translator(student, teacher)
    token_ids = [*both.student_spelling.encode(text.encode()), both.student.convert_tokens_to_ids(STOP)]
    tree, reply, token_scores, known = scored(both, token_ids, seed, scale)
    native = both.reply(token_ids)
    theirs = [i for i, counts in zip(native.token_ids, native.response_mask, strict=True) if counts]
    end = tree.controls[-1][1]
    assert end == tree.descendant(0, theirs), "the tree holds the teacher's own tokens of the whole reply"
    assert token_scores.is_scored.all()
    assert token_scores.logprobs.max() <= 1e-9
    assert float(token_scores.logprobs.sum()) == pytest.approx(reply.before[end], abs=1e-8)
    assert float(known.sum(dim=1).max()) <= 1 + 1e-9
    own = known.gather(1, torch.tensor(token_ids)[:, None]).squeeze(1)
    assert (own <= token_scores.logprobs.exp() + 1e-12).all()
    if scale < 10:  # a sharp random teacher cuts its own words anyhow, and its rows are scaled down further
        assert (own >= token_scores.logprobs.exp() * 0.5).all()


@settings(max_examples=60, deadline=None)
@given(
    student=seeds,
    teacher=seeds,
    noise=st.randoms(use_true_random=False),
    length=st.integers(0, 20),
    seed=st.integers(0, 9),
)
def test_whatever_a_student_emits_gets_finite_scores(
    student: int, teacher: int, noise: random.Random, length: int, seed: int
) -> None:
    assume(student != teacher)
    both = random_translator(student, teacher)
    token_ids = [noise.randrange(len(random_tokenizer(student))) for _ in range(length)]
    tree, _, token_scores, known = scored(both, token_ids, length)
    assert torch.isfinite(token_scores.logprobs).all()
    assert ((known >= 0) & (known <= 1 + 1e-9)).all()
    assert (known.sum(dim=1) <= 1 + 1e-9).all()
    assert not token_scores.logprobs[~token_scores.is_scored].any()
    for segment in tree.segments:
        for i, is_canonical in enumerate(segment.is_canonical):
            assert (
                is_canonical or float(token_scores.logprobs[segment.first_student + i]) <= NONCANONICAL_LOGPROB + 1e-9
            )
