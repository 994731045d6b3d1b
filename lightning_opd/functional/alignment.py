"""Which tokens of two tokenisations cover the same bytes of one text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Alignment:
    """Student and teacher tokens by the bytes they cover.

    Args:
        strict: (student index, teacher index) of tokens that cover the same bytes.
        spans: The smallest runs of student and teacher tokens that cover the same bytes; a strict
            pair is a span of one token on either side.
    """

    strict: list[tuple[int, int]] = field(default_factory=list)
    spans: list[tuple[range, range]] = field(default_factory=list)

    @classmethod
    def identity(cls, num_tokens: int) -> Alignment:
        """Return the alignment of so many tokens with themselves."""
        return cls([(i, i) for i in range(num_tokens)], [(range(i, i + 1), range(i, i + 1)) for i in range(num_tokens)])

    def up_to(self, num_teacher: int) -> Alignment:
        """Return the pairs that need only so many of the first teacher tokens."""
        strict = [(i, j) for i, j in self.strict if j < num_teacher]
        return Alignment(strict, [(s, t) for s, t in self.spans if t.stop <= num_teacher])

    def then(self, other: Alignment, num_student: int, num_teacher: int) -> Alignment:
        """Return this alignment followed by another one, which begins after so many tokens of each side.

        Example:
            >>> Alignment.identity(1).then(Alignment.identity(1), 1, 4).strict
            [(0, 0), (1, 4)]
        """
        strict = [(i + num_student, j + num_teacher) for i, j in other.strict]
        spans = [(_moved(s, num_student), _moved(t, num_teacher)) for s, t in other.spans]
        return Alignment(self.strict + strict, self.spans + spans)


def align(student_spans: Sequence[tuple[int, int]], teacher_spans: Sequence[tuple[int, int]]) -> Alignment:
    """Align two tokenisations of one text in linear time.

    An empty span is a control token: it covers no bytes, is never aligned here, and no run
    reaches across it. Bytes that only one side covers are left out.

    Args:
        student_spans: Begin and end in bytes of each student token, in order and without overlaps.
        teacher_spans: The same of each teacher token.

    Example:
        >>> align([(0, 1), (1, 2), (2, 5)], [(0, 2), (2, 5)])
        Alignment(strict=[(2, 1)], spans=[(range(0, 2), range(0, 1)), (range(2, 3), range(1, 2))])
    """
    strict, spans = [], []
    student_start = teacher_start = 0
    while student_start < len(student_spans) and teacher_start < len(teacher_spans):
        (student_begin, student_end), (teacher_begin, teacher_end) = (
            student_spans[student_start],
            teacher_spans[teacher_start],
        )
        if student_begin == student_end or student_begin < teacher_begin:
            student_start += 1
            continue
        if teacher_begin == teacher_end or teacher_begin < student_begin:
            teacher_start += 1
            continue
        student_stop, teacher_stop = student_start + 1, teacher_start + 1
        while student_end != teacher_end:  # let the side that lags take one more token
            tokens, stop, end = (
                (student_spans, student_stop, student_end)
                if student_end < teacher_end
                else (teacher_spans, teacher_stop, teacher_end)
            )
            if stop == len(tokens) or tokens[stop][0] != end or tokens[stop][1] == end:
                break  # the text ends, has a hole, or meets a control token
            if student_end < teacher_end:
                student_stop, student_end = stop + 1, tokens[stop][1]
            else:
                teacher_stop, teacher_end = stop + 1, tokens[stop][1]
        else:
            spans.append((range(student_start, student_stop), range(teacher_start, teacher_stop)))
            if student_stop - student_start == teacher_stop - teacher_start == 1:
                strict.append((student_start, teacher_start))
        student_start, teacher_start = student_stop, teacher_stop
    return Alignment(strict, spans)


def _moved(indices: range, offset: int) -> range:
    return range(indices.start + offset, indices.stop + offset)
