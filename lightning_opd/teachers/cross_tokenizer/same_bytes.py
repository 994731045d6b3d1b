"""Which bytes of a text are left in its normal form."""

from __future__ import annotations

from collections.abc import Sequence


class SameBytes:
    """Where the bytes of a text are in its normal form.

    Args:
        parts: Parts of the text with their normal forms, in order.
        normal: The normal form of the whole; where it is not that of the parts, only its beginning and its end are
            compared with the text's.
        text: The text.
    """

    def __init__(self, parts: Sequence[tuple[bytes, bytes]], normal: bytes, text: bytes) -> None:
        """Number the bytes."""
        if b"".join(of_part for _, of_part in parts) != normal:
            parts = _by_ends(text, normal)
        self._origin: list[int] = []
        """For each byte of the normal form its place in the text, -1 for none."""
        start = 0
        for part, of_part in parts:
            places = range(start, start + len(part)) if part == of_part else [-1] * len(of_part)
            self._origin += places
            start += len(part)

    def normal_spans(self, spans: Sequence[tuple[int, int]], start: int) -> list[tuple[tuple[int, int], bool]]:
        """Return begin and end in the normal form of spans of the text, and whether it holds the same bytes.

        The spans follow one another, and so do the answers: what differs goes to the first span that takes part in it,
        the next ones are empty.

        Args:
            spans: Begin and end of each in the text, without gaps.
            start: Where the first one begins in the text.
        """
        places = {place: index for index, place in enumerate(self._origin) if place >= 0}
        known = [
            (places[begin], places[end - 1] + 1)
            if begin < end and all(places.get(i) == places.get(begin, -1) + i - begin for i in range(begin, end))
            else None
            for begin, end in spans
        ]
        reached = next((places[i] + 1 for i in reversed(range(start)) if i in places), 0)
        found: list[tuple[tuple[int, int], bool]] = []
        for index, own in enumerate(known):
            is_same = own is not None and own[0] == reached
            following = (own for own in known[index + 1 :] if own is not None)
            end = own[1] if own is not None else next(following, (len(self._origin), 0))[0]
            found.append(((reached, end), is_same))
            reached = end
        return found

    def original(self, start: int, stop: int) -> tuple[int, int]:
        """Return begin and end in the text of bytes of the normal form, an empty range where some are not in it."""
        places = self._origin[start:stop]
        if not places or places != list(range(places[0], places[0] + len(places))) or places[0] < 0:
            before = [place + 1 for place in self._origin[:start][-1:] if place >= 0]
            at = before[0] if before else 0
            return at, at
        return places[0], places[-1] + 1


def _by_ends(text: bytes, normal: bytes) -> list[tuple[bytes, bytes]]:
    """Part two texts into what they begin with alike, what differs, and what they end with alike."""
    shorter = min(len(text), len(normal))
    head = next((n for n in range(shorter) if text[n] != normal[n]), shorter)
    rest = shorter - head
    tail = next((n for n in range(rest) if text[-1 - n] != normal[-1 - n]), rest)
    ends = len(text) - tail, len(normal) - tail
    return [
        (text[:head], normal[:head]),
        (text[head : ends[0]], normal[head : ends[1]]),
        (text[ends[0] :], normal[ends[1] :]),
    ]
