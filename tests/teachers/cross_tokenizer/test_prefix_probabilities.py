from __future__ import annotations

import pytest
import torch

from lightning_opd.teachers.cross_tokenizer import prefix_probabilities
from lightning_opd.teachers.cross_tokenizer.prefix_scores import prefix_scores
from tests.teachers.cross_tokenizer.random_pairs import distributions_of, random_translator, scored, sums_of


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
