"""What a student generated, in the tokens of a teacher that has another tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING

from lightning_opd.errors import ConfigError
from lightning_opd.functional.alignment import Alignment, align
from lightning_opd.teachers.cross_tokenizer.roles import RoleTable, role_table
from lightning_opd.teachers.cross_tokenizer.spelling import ByteSpelling, spans_of
from lightning_opd.tokenization.chat import render_prompt, reply_surroundings
from lightning_opd.types import Messages

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass
class Translation:
    """A reply in the teacher's tokens.

    Args:
        token_ids: What the teacher reads.
        response_mask: True on the tokens that stand for something the student generated.
        alignment: Student tokens of the reply ↔ teacher tokens where `response_mask` holds, both
            counted from 0.
    """

    token_ids: list[int] = field(default_factory=list)
    response_mask: list[bool] = field(default_factory=list)
    alignment: Alignment = field(default_factory=Alignment)

    def add(self, token_ids: Sequence[int], *, is_response: bool) -> None:
        """Append tokens."""
        self.token_ids += token_ids
        self.response_mask += [is_response] * len(token_ids)


class Translator:
    """Renders prompts by the teacher's own template, and re-encodes the student's replies.

    Text is cut by the teacher's tokenizer as it would cut it natively, between control tokens and
    apart from the prompt. Control tokens become their counterparts; one without a counterpart is shown
    to the teacher as its text and stays unaligned. Two tokenizers of one vocabulary need no
    translation: the tokens themselves are kept, however the student came to write them.

    Args:
        student: The student's tokenizer.
        teacher: The teacher's tokenizer, with its chat template.
        roles: Student's token → teacher's token, or None; for what is not found by itself.

    Attributes:
        is_identity: Whether both have one vocabulary.
        is_verbatim: Whether whole episodes have the same tokens on both sides.
        student_lead: What the student's template puts before a reply.
        teacher_lead: What the teacher's does.
    """

    def __init__(
        self,
        student: PreTrainedTokenizerBase,
        teacher: PreTrainedTokenizerBase,
        roles: Mapping[str, str | None] | None = None,
    ) -> None:
        """Find the counterparts of control tokens."""
        self.student, self.teacher = student, teacher
        self.is_identity = student.get_vocab() == teacher.get_vocab()
        self.roles: RoleTable = role_table(student, teacher, roles)
        self.is_verbatim = (
            self.is_identity
            and student.chat_template == teacher.chat_template
            and all(self.roles.pairs.get(token_id) == token_id for token_id in self.roles.student_ids)
        )
        self.student_spelling = ByteSpelling(student, self.roles.student_ids)
        self.teacher_spelling = ByteSpelling(teacher, self.roles.teacher_ids)
        self.student_lead, self.teacher_lead = (reply_surroundings(t)[0].encode() for t in (student, teacher))

    def shared_tokens(self) -> dict[int, int]:
        """Return the student's id of each of the teacher's tokens that it has too: of the same bytes, or role."""
        ours, theirs = (
            {spelling.piece(i): i for i in sorted(tokenizer.get_vocab().values(), reverse=True)}
            for spelling, tokenizer in ((self.student_spelling, self.student), (self.teacher_spelling, self.teacher))
        )
        text = {theirs[piece]: token_id for piece, token_id in ours.items() if piece and piece in theirs}
        return {**text, **{other: own for own, other in self.roles.pairs.items()}}

    def prompt(self, messages: Messages) -> list[int]:
        """Return the teacher's tokens of a chat and an opened assistant turn.

        Raises:
            ValueError: The teacher's chat template refuses the messages.
        """
        from jinja2 import TemplateError

        try:
            return render_prompt(self.teacher, messages)
        except TemplateError as error:
            roles = [message.get("role") for message in messages]
            msg = (
                f"The chat template of teacher `{self.teacher.name_or_path}` refuses messages of roles {roles}: "
                f"{error}. Give it a template that renders them, or route such prompts to another teacher."
            )
            raise ConfigError(msg) from error

    def reply(self, token_ids: Sequence[int], cut: Callable[[list[bytes]], list[bytes]] | None = None) -> Translation:
        """Return a reply of the student in the teacher's tokens.

        Args:
            token_ids: What the student generated, the stop token included.
            cut: Maps the student's pieces of a stretch of text to the stretches that the teacher
                tokenises one by one; by default the text is one.
        """
        out = Translation()
        if self.is_identity:
            out.add([self.roles.pairs.get(i, i) for i in token_ids], is_response=True)
            out.alignment = Alignment.identity(len(token_ids))
            return out
        is_lost, place = False, 0
        for is_control, run in groupby(token_ids, lambda i: i in self.roles.student_ids):
            tokens = list(run)
            if is_control:
                for offset, token_id in enumerate(tokens):
                    self._add_control(out, token_id, place + offset, is_lost=is_lost)
            else:
                is_lost = self._add_text(out, tokens, place, cut, is_lost=is_lost)
            place += len(tokens)
        return out

    def _add_control(self, out: Translation, token_id: int, place: int, *, is_lost: bool) -> None:
        if token_id not in self.roles.pairs:
            out.add(
                self.teacher_spelling.encode(str(self.student.convert_ids_to_tokens(token_id)).encode()),
                is_response=False,
            )
            return
        if not is_lost:
            out.alignment = out.alignment.then(Alignment.identity(1), place, sum(out.response_mask))
        out.add([self.roles.pairs[token_id]], is_response=True)

    def _add_text(
        self,
        out: Translation,
        token_ids: list[int],
        place: int,
        cut: Callable[[list[bytes]], list[bytes]] | None,
        *,
        is_lost: bool,
    ) -> bool:
        """Append a stretch of text; return whether the teacher's tokens no longer spell the student's bytes."""
        pieces = [self.student_spelling.piece(i) for i in token_ids]
        lead = b""
        if place == 0:  # what a template puts before a reply is not the student's, on either side
            lead = self.teacher_lead
            pieces = without_lead(pieces, self.student_lead)
        text = b"".join(pieces)
        if cut is None:
            theirs = self.teacher_spelling.encode(lead + text)
        else:
            theirs = [i for segment in (lead, *cut(pieces)) for i in self.teacher_spelling.encode(segment)]
        their_pieces = without_lead([self.teacher_spelling.piece(i) for i in theirs], lead)
        num_lead = next((n for n, piece in enumerate(their_pieces) if piece), len(theirs))
        out.add(theirs[:num_lead], is_response=False)
        first = sum(out.response_mask)
        out.add(theirs[num_lead:], is_response=True)
        spans = spans_of(their_pieces[num_lead:], text)
        if not is_lost:
            out.alignment = out.alignment.then(align(spans_of(pieces, text), spans), place, first)
        return is_lost or max((end for _, end in spans), default=0) < len(text)


def without_lead(pieces: list[bytes], lead: bytes) -> list[bytes]:
    """Return the pieces without the given beginning, if they begin with it."""
    if not b"".join(pieces).startswith(lead):
        return pieces
    rest, left = [], len(lead)
    for piece in pieces:
        rest.append(piece[left:])
        left = max(0, left - len(piece))
    return rest
