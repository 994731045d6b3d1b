from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings

from lightning_opd.teachers.cross_tokenizer import prefix_probabilities
from lightning_opd.teachers.cross_tokenizer.prefix_probabilities import Cover, PrefixProbabilities, TextSegment
from lightning_opd.teachers.cross_tokenizer.prefix_scores import prefix_scores
from lightning_opd.teachers.cross_tokenizer.prefix_tree import prefix_tree
from tests.teachers.cross_tokenizer.random_pairs import (
    distributions_of,
    pairs,
    random_translator,
    scored,
    sums_of,
    texts,
)


def test_small_chunks_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    both = random_translator(3, 4)
    token_ids = [*both.student_spelling.encode(b"12+34=46, abc"), both.student.get_vocab()["<|im_end|>"]]
    _, reply, whole, known = scored(both, token_ids, 0)
    monkeypatch.setattr(prefix_probabilities, "MAX_CHUNK_ELEMENTS", 2 * len(both.teacher))
    sums = sums_of(both)
    parts = prefix_scores(reply, sums)
    torch.testing.assert_close(parts.logprobs, whole.logprobs, rtol=0, atol=1e-12)
    rows = [distributions_of(both)(reply, parts, range(i, i + 1)) for i in range(len(token_ids))]
    torch.testing.assert_close(torch.cat(rows), known, rtol=0, atol=1e-12)


def all_covers(sums: PrefixProbabilities, segment: TextSegment, end: int) -> list[Cover]:
    """Ask at every node whether a token of the teacher reaches the end of the first `end` bytes."""
    found = []
    for begin, node in enumerate(segment.nodes[:end]):
        tokens = sums.teacher.beginning_with(segment.text[begin:end])
        found += [] if node is None or not tokens else [(node, tokens.start, tokens.stop)]
    return found


def all_longer_covers(sums: PrefixProbabilities, segment: TextSegment, index: int) -> list[Cover]:
    """Ask at every node, whatever follows, about tokens that leave the text for a longer one of the student."""
    start, end = segment.student_spans[index]
    token, following = segment.text[start:end], segment.text[end : start + sums.student.max_bytes]
    found = []
    for begin, node in enumerate(segment.nodes[: start + sums.student.max_bytes]):
        if node is not None:
            head, offset = segment.text[begin:start], max(0, begin - start)
            found += [(node, *place) for place in sums._tokens_leaving_the_text(head, offset, token, following)]
    return found


@settings(max_examples=15, deadline=None)
@given(pair=pairs, text=texts)
def test_covers_are_found_where_a_token_reaches_and_nowhere_else(pair: tuple[int, int], text: str) -> None:
    both = random_translator(*pair)
    sums = sums_of(both)
    for segment in prefix_tree(both, both.student_spelling.encode(text.encode())).segments:
        for index, (_, end) in enumerate(segment.student_spans):
            assert sums.covers(segment, end) == all_covers(sums, segment, end)
            assert sums.longer_covers(segment, index) == all_longer_covers(sums, segment, index)
