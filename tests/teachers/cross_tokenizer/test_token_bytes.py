from __future__ import annotations

from lightning_opd.teachers.cross_tokenizer.token_bytes import TokenBytes, union


def test_pieces_are_found_by_how_they_begin() -> None:
    pieces = TokenBytes([b"b", b"", b"ab", b"a", b"abc", b"abd", b"b"])
    assert [pieces.pieces[i] for i in pieces.beginning_with(b"ab")] == [b"ab", b"abc", b"abd"]
    assert [pieces.order[i] for i in pieces.spelling(b"b")] == [0, 6]
    assert pieces.longer_than(b"a") == (b"ab",)
    assert pieces.longer_than(b"ab") == (b"abc", b"abd")
    assert pieces.first_tokens(b"abx") == [2]
    assert sorted(pieces.first_tokens(b"ab")) == [2, 4, 5]
    assert pieces.first_tokens(b"x") == []


def test_a_union_counts_no_place_twice() -> None:
    assert union([range(5, 7), range(2), range(6, 9), range(3, 3), range(1, 3)]) == [(0, 3), (5, 9)]
