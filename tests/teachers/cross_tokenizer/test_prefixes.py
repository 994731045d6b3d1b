from __future__ import annotations

import functools
import random
from pathlib import Path

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightning_opd.models import LanguageModel, load_causal_lm
from lightning_opd.teachers.cross_tokenizer import prefixes
from lightning_opd.teachers.cross_tokenizer.prefix_tree import PrefixTree, pack, prefix_tree
from lightning_opd.teachers.cross_tokenizer.prefixes import (
    NONCANONICAL_LOGPROB,
    UNSETTLED,
    PrefixScorer,
    PrefixScores,
    Reply,
    TextSegment,
)
from lightning_opd.teachers.cross_tokenizer.token_bytes import TokenBytes
from lightning_opd.teachers.cross_tokenizer.translation import Translator
from tests.teachers.cross_tokenizer.random_pairs import random_tokenizer, random_translator, seeds, texts
from tests.teachers.cross_tokenizer.texts import TEXTS, WORLDS, Texts, rows_of

STOP = "<|im_end|>"


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


@functools.cache
def prefix_scorer_of(both: Translator) -> PrefixScorer:
    sides = (both.student_spelling, both.student), (both.teacher_spelling, both.teacher)
    ours, theirs = (TokenBytes([spelling.piece(i) for i in range(len(tokenizer))]) for spelling, tokenizer in sides)
    return PrefixScorer(ours, theirs, both.roles.pairs)


def scored(
    both: Translator, token_ids: list[int], seed: int, scale: float = 3.0
) -> tuple[PrefixTree, Reply, PrefixScores, Tensor]:
    """Score a reply by random distributions of the teacher, and give every known probability."""
    tree, generator = prefix_tree(both, token_ids), torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(len(tree.token_ids), len(both.teacher), generator=generator, dtype=torch.float64)
    table, prefix_scorer = torch.log_softmax(logits, dim=-1), prefix_scorer_of(both)
    before = [0.0]
    for parent, token_id in zip(tree.parents[1:], tree.token_ids[1:], strict=True):
        before.append(before[parent] + float(table[parent, token_id]))
    reply = Reply(token_ids, tree.segments, tree.controls, before, rows_of(prefix_scorer.sort(table)))
    token_scores = prefix_scorer.score(reply)
    return tree, reply, token_scores, prefix_scorer.distributions(reply, token_scores)


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


def test_small_chunks_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    both = random_translator(3, 4)
    token_ids = [*both.student_spelling.encode(b"12+34=46, abc"), both.student.convert_tokens_to_ids(STOP)]
    _, reply, whole, known = scored(both, token_ids, 0)
    monkeypatch.setattr(prefixes, "MAX_CHUNK_ELEMENTS", 2 * len(both.teacher))
    prefix_scorer = prefix_scorer_of(both)
    parts = prefix_scorer.score(reply)
    torch.testing.assert_close(parts.logprobs, whole.logprobs, rtol=0, atol=1e-12)
    rows = [prefix_scorer.distributions(reply, parts, range(i, i + 1)) for i in range(len(token_ids))]
    torch.testing.assert_close(torch.cat(rows), known, rtol=0, atol=1e-12)


def test_no_token_answers_for_what_follows_it() -> None:
    """The teacher merges "ab": "a" before "b" is no absurdity, and "a" before "c" no certainty."""
    prefix_scorer = PrefixScorer(TokenBytes([b"a", b"b", b"c"]), TokenBytes([b"a", b"b", b"c", b"ab"]))
    first, second = torch.tensor([[0.05, 0.05, 0.1, 0.8], [0.2, 0.1, 0.6, 0.1]]).log().double()
    for text, ids, whole, after_a in ((b"ab", [0, 1], first[3], 0.8 + 0.05 * 0.1), (b"ac", [0, 2], None, 0.05 * 0.6)):
        table = torch.stack([first, second, second])
        before = [0.0, float(first[0]), float(first[0] + second[2] if whole is None else whole)]
        segment = TextSegment(text, [(0, 1), (1, 2)], [True, True], 0, [0, 1, 2], None)
        reply = Reply(ids, [segment], [], before, rows_of(prefix_scorer.sort(table)))
        token_scores = prefix_scorer.score(reply)
        assert token_scores.logprobs.exp().tolist() == pytest.approx([0.85, after_a / 0.85])
        assert prefix_scorer.distributions(reply, token_scores)[0].tolist() == pytest.approx([0.85, 0.05, 0.1])


def test_a_tree_is_read_as_its_branches_one_by_one(tiny_model_dir: Path) -> None:
    """A branch's states are those of a plain forward over it."""
    both = random_translator(1, 2)
    replies = [both.student_spelling.encode(text.encode()) for text in ("12+34=46", "", "a b c d e f")]
    trees, prompts = [prefix_tree(both, ids) for ids in replies], [[5, 6, 7], [8], [9, 10]]
    model = LanguageModel(load_causal_lm(str(tiny_model_dir), dtype="float64").eval(), 288)
    states = model.tree_hidden_states(*pack(prompts, [_within(tree, 288) for tree in trees], torch.device("cpu")))
    num_branches = 0
    for row, (prompt, tree) in enumerate(zip(prompts, trees, strict=True)):
        for node in range(len(tree.token_ids)):
            branch, at = [], node
            while at > 0:
                branch.append(tree.token_ids[at] % 288)
                at = tree.parents[at]
            ids = torch.tensor([[*prompt, *branch[::-1], 0]])
            expected = model.states(ids, torch.ones_like(ids, dtype=torch.bool))[0, -1]
            torch.testing.assert_close(states[row, len(prompt) - 1 + node], expected, rtol=0, atol=1e-10)
            num_branches += node not in tree.parents
    assert num_branches >= len(replies)


def _within(tree: PrefixTree, vocab_size: int) -> PrefixTree:
    return PrefixTree([i % vocab_size for i in tree.token_ids], tree.parents)
