from __future__ import annotations

from lightning_opd.teachers.cross_tokenizer.token_bytes import TokenBytes, union


def test_tokens_are_found_by_how_they_begin() -> None:
    tokens = TokenBytes([b"b", b"", b"ab", b"a", b"abc", b"abd", b"b"])
    assert [tokens.sorted_bytes[i] for i in tokens.beginning_with(b"ab")] == [b"ab", b"abc", b"abd"]
    assert [tokens.sorted_ids[i] for i in tokens.equal_to(b"b")] == [0, 6]
    assert tokens.extensions(b"a") == (b"ab",)
    assert tokens.extensions(b"ab") == (b"abc", b"abd")
    assert tokens.first_tokens(b"abx") == [2]
    assert sorted(tokens.first_tokens(b"ab")) == [2, 4, 5]
    assert tokens.first_tokens(b"x") == []


def test_a_union_counts_no_index_twice() -> None:
    assert union([range(5, 7), range(2), range(6, 9), range(3, 3), range(1, 3)]) == [(0, 3), (5, 9)]
