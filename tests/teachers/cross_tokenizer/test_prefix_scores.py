from __future__ import annotations

import functools
import math
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightning_opd.functional.advantages import Immediate, LogRatioToGo
from lightning_opd.functional.credit import PrefixCredit
from lightning_opd.teachers.cross_tokenizer.prefix_distributions import PrefixDistributions
from lightning_opd.teachers.cross_tokenizer.prefix_probabilities import PrefixProbabilities, Reply, TextSegment
from lightning_opd.teachers.cross_tokenizer.prefix_scores import NONCANONICAL_LOGPROB, prefix_scores, reached_logprobs
from lightning_opd.teachers.cross_tokenizer.token_bytes import TokenBytes
from tests.teachers.cross_tokenizer.random_pairs import pairs, random_tokenizer, random_translator, scored, texts
from tests.teachers.cross_tokenizer.texts import WORLDS, Texts, rows_of

STOP = "<|im_end|>"


def test_no_token_answers_for_what_follows_it() -> None:
    """The teacher merges "ab": "a" before "b" is no absurdity, and "a" before "c" no certainty."""
    sums = PrefixProbabilities(TokenBytes([b"a", b"b", b"c"]), TokenBytes([b"a", b"b", b"c", b"ab"]))
    first, second = torch.tensor([[0.05, 0.05, 0.1, 0.8], [0.2, 0.1, 0.6, 0.1]]).log().double()
    for text, ids, whole, after_a in ((b"ab", [0, 1], first[3], 0.8 + 0.05 * 0.1), (b"ac", [0, 2], None, 0.05 * 0.6)):
        table = torch.stack([first, second, second])
        before = [0.0, float(first[0]), float(first[0] + second[2] if whole is None else whole)]
        segment = TextSegment(text, [(0, 1), (1, 2)], [True, True], [True, True], 0, [0, 1, 2], None)
        reply = Reply(ids, [segment], [], before, rows_of(table))
        token_scores = prefix_scores(reply, sums)
        assert token_scores.logprobs.exp().tolist() == pytest.approx([0.85, after_a / 0.85])
        assert PrefixDistributions(sums)(reply, token_scores)[0].tolist() == pytest.approx([0.85, 0.05, 0.1])


def reply_of(
    sums: PrefixProbabilities, ids: list[int], segment: TextSegment, controls: list[tuple[int, int, int]], paths: Tensor
) -> Reply:
    """Return a reply to a teacher of one distribution, whatever came before.

    Args:
        sums: Of both vocabularies.
        ids: The student's tokens.
        segment: The text.
        controls: Control tokens after it.
        paths: The teacher's tokens up to each node, padded by -1.
    """
    before = [float(TEACHER[path[path >= 0]].log().sum()) for path in paths]
    table = TEACHER.log().expand(len(paths), -1)
    return Reply(ids, [segment], controls, before, rows_of(table))


TEACHER = torch.tensor([0.3, 0.4, 0.2, 0.1], dtype=torch.float64)
"""Probabilities of `a`, `b`, `ab` and the end of the turn, after anything."""


@functools.cache
def letters() -> tuple[PrefixProbabilities, PrefixDistributions]:
    """A student that has `a`, `b`, `ab` and an end, 3; the teacher's end is 3, too."""
    student, teacher = TokenBytes([b"a", b"b", b"ab", b""]), TokenBytes([b"a", b"b", b"ab", b""])
    sums = PrefixProbabilities(student, teacher)
    return sums, PrefixDistributions(sums, {3: 3})


def test_a_token_that_the_tokenizer_would_not_generate_gets_a_fixed_penalty() -> None:
    """The student generates `a`, `b` where its tokenizer has `ab`, then `b`, which is canonical."""
    sums, _ = letters()
    paths = torch.tensor([[-1, -1], [0, -1], [2, -1], [2, 1]])
    segment = TextSegment(b"abb", [(0, 1), (1, 2), (2, 3)], [True] * 3, [False, False, True], 0, [0, 1, 2, 3], None)
    scores = prefix_scores(reply_of(sums, [0, 1, 1], segment, [], paths), sums)
    begins_a, begins_ab = 0.3 + 0.2, 0.2 + 0.3 * 0.4
    begins_abb = 0.2 * 0.4 + 0.3 * 0.0  # after `a` alone no token spells `bb`
    expected = [
        math.log(begins_a) + NONCANONICAL_LOGPROB,
        math.log(begins_ab / begins_a) + NONCANONICAL_LOGPROB,
        math.log(begins_abb / begins_ab),
    ]
    assert scores.logprobs.tolist() == pytest.approx(expected, abs=1e-12)
    assert scores.is_scored.all()
    assert list(scores.starts) == pytest.approx([0.0, math.log(begins_a), math.log(begins_ab)])


def test_a_canonical_token_leaves_out_texts_of_a_longer_one_and_the_end_takes_the_rest() -> None:
    """`a` and the end of the turn: after a canonical `a` the text does not go on to `ab`."""
    sums, distributions = letters()
    paths = torch.tensor([[-1, -1], [0, -1], [0, 3]])
    segment = TextSegment(b"a", [(0, 1)], [True], [True], 0, [0, 1], 2)
    reply = reply_of(sums, [0, 3], segment, [(1, 2, 1)], paths)
    scores = prefix_scores(reply, sums)
    a_not_ab = (0.3 + 0.2) - (0.2 + 0.3 * 0.4)
    assert scores.logprobs.tolist() == pytest.approx([math.log(a_not_ab), math.log(0.3 * 0.1 / a_not_ab)], abs=1e-12)
    assert scores.is_scored.all()
    rows = distributions(reply, scores)
    # the teacher's `a` does not tell whether the student generates `a` or `ab`: only its own choice is known
    assert rows[0].tolist() == pytest.approx([a_not_ab, 0.4, 0.0, 0.1], abs=1e-12)
    # `b` would have made it `ab`; whether `a` or `ab` comes next, the teacher's `a` does not tell
    assert rows[1].tolist() == pytest.approx([0.0, 0.0, 0.0, 0.3 * 0.1 / a_not_ab], abs=1e-12)


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


@settings(max_examples=25, deadline=None)
@given(pair=pairs, text=texts, seed=st.integers(0, 99), scale=st.sampled_from([3.0, 60.0]))
def test_scores_of_any_text_add_up_to_its_log_prob(pair: tuple[int, int], text: str, seed: int, scale: float) -> None:
    """Also where its tokens are less likely than the precision of a sum of probabilities."""
    both = random_translator(*pair)
    token_ids = [*both.student_spelling.encode(text.encode()), both.student.get_vocab()[STOP]]
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


@settings(max_examples=25, deadline=None)
@given(
    pair=pairs,
    noise=st.randoms(use_true_random=False),
    length=st.integers(0, 20),
    seed=st.integers(0, 9),
)
def test_whatever_a_student_emits_gets_finite_scores(
    pair: tuple[int, int], noise: random.Random, length: int, seed: int
) -> None:
    both = random_translator(*pair)
    token_ids = [noise.randrange(len(random_tokenizer(pair[0]))) for _ in range(length)]
    tree, _, token_scores, known = scored(both, token_ids, seed)
    assert torch.isfinite(token_scores.logprobs).all()
    assert ((known >= 0) & (known <= 1 + 1e-9)).all()
    assert (known.sum(dim=1) <= 1 + 1e-9).all()
    assert not token_scores.logprobs[~token_scores.is_scored].any()
    for segment in tree.segments:
        for i, is_canonical in enumerate(segment.is_canonical):
            assert (
                is_canonical or float(token_scores.logprobs[segment.first_student + i]) <= NONCANONICAL_LOGPROB + 1e-9
            )


@pytest.mark.parametrize("broken", [(math.nan, -3.0), (-1.0, math.nan)])
def test_a_teacher_that_gives_no_number_is_seen(broken: tuple[float, float]) -> None:
    first, second, third = reached_logprobs([(-1.0, -9.0), broken, (-2.0, -9.0)], [True] * 3, -3.0)
    assert math.isnan(second)
    assert third == pytest.approx(-2.0, abs=1e-2)
    assert math.isnan(first) or first == pytest.approx(-1.0, abs=1e-2)
