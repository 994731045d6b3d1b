"""What a student generated, translated into the tokens of a teacher that has another tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING, TypeAlias

from lightning_opd.errors import ConfigError
from lightning_opd.functional.alignment import Alignment, align
from lightning_opd.teachers.cross_tokenizer.beginnings import Beginnings
from lightning_opd.teachers.cross_tokenizer.opening import Opening, Openings
from lightning_opd.teachers.cross_tokenizer.roles import RoleTable, role_table
from lightning_opd.teachers.cross_tokenizer.spelling import ByteSpelling, spans_of
from lightning_opd.tokenization.chat import render_prompt
from lightning_opd.types import Messages

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Split: TypeAlias = Callable[[list[bytes]], list[bytes]]
"""From the bytes of the student's tokens of a text segment to the parts that the teacher tokenises one by one."""


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

    The teacher's tokenizer splits each segment of text between control tokens, apart from the prompt, as it would
    split any text. Control tokens become their counterparts; the teacher is shown one without a counterpart as its
    text, and that token stays unaligned. Two tokenizers with one vocabulary need no translation: the student's tokens
    are kept, even those with which its tokenizer would not write the text.

    Args:
        student: The student's tokenizer.
        teacher: The teacher's tokenizer, with its chat template.
        roles: Student's token → teacher's token, or None; for what is not found by itself.
        stop_token_ids: What ends the student's replies, beside its `eos_token` and what closes its template's turns.

    Attributes:
        is_identity: Whether both have one vocabulary.
        is_verbatim: Whether whole episodes have the same tokens on both sides.
        opening: Returns how a reply begins for the teacher.
        teacher_beginnings: Returns the teacher's tokens of all beginnings of a text.
    """

    def __init__(
        self,
        student: PreTrainedTokenizerBase,
        teacher: PreTrainedTokenizerBase,
        roles: Mapping[str, str | None] | None = None,
        stop_token_ids: Sequence[int] = (),
    ) -> None:
        """Find the counterparts of control tokens."""
        self.student, self.teacher = student, teacher
        self.is_identity = student.get_vocab() == teacher.get_vocab()
        self.roles: RoleTable = role_table(student, teacher, roles, stop_token_ids)
        self.is_verbatim = (
            self.is_identity
            and student.chat_template == teacher.chat_template
            and all(self.roles.pairs.get(token_id) == token_id for token_id in self.roles.student_ids)
        )
        self.student_spelling = ByteSpelling(student, self.roles.student_ids)
        self.teacher_spelling = ByteSpelling(teacher, self.roles.teacher_ids)
        self.teacher_beginnings = Beginnings(self.teacher_spelling)
        self.opening = Openings((student, self.student_spelling), (teacher, self.teacher_spelling), self.roles)

    def shared_tokens(self) -> dict[int, int]:
        """Return the student's id of each of the teacher's tokens that it has too: of the same bytes, or role."""
        ours, theirs = (
            {spelling.token_bytes(i): i for i in sorted(tokenizer.get_vocab().values(), reverse=True)}
            for spelling, tokenizer in ((self.student_spelling, self.student), (self.teacher_spelling, self.teacher))
        )
        text = {theirs[token]: token_id for token, token_id in ours.items() if token and token in theirs}
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

    def reply(self, token_ids: Sequence[int], split: Split | None = None) -> Translation:
        """Return a reply of the student in the teacher's tokens.

        Args:
            token_ids: What the student generated, the stop token included.
            split: Which parts of a text segment the teacher tokenises one by one; by default the segment is one.
        """
        out = Translation()
        if self.is_identity:
            out.add([self.roles.pairs.get(i, i) for i in token_ids], is_response=True)
            out.alignment = Alignment.identity(len(token_ids))
            return out
        opening = self.opening(token_ids)
        out.add(opening.token_ids, is_response=False)
        start = opening.num_skipped
        for is_control, run in groupby(token_ids[start:], lambda i: i in self.roles.student_ids):
            tokens = list(run)
            if is_control:
                for offset, token_id in enumerate(tokens):
                    self._add_control(out, token_id, start + offset)
            else:
                is_first = start == opening.num_skipped
                self._add_text(out, tokens, start, split, opening if is_first else Opening())
            start += len(tokens)
        return out

    def _add_control(self, out: Translation, token_id: int, index: int) -> None:
        if token_id not in self.roles.pairs:
            out.add(
                self.teacher_spelling.encode(str(self.student.convert_ids_to_tokens(token_id)).encode()),
                is_response=False,
            )
            return
        out.alignment = out.alignment.then(Alignment.identity(1), index, sum(out.response_mask))
        out.add([self.roles.pairs[token_id]], is_response=True)

    def _add_text(
        self, out: Translation, token_ids: list[int], index: int, split: Split | None, opening: Opening
    ) -> None:
        """Append a segment of text; what the teacher's tokenizer spells otherwise is not aligned.

        Args:
            out: To append to.
            token_ids: The student's tokens of the segment.
            index: Of the first of them in the reply.
            split: See `reply`.
            opening: Text that the student did not generate, on either side; empty where the reply goes on.
        """
        lead = opening.text
        ours = without_lead([self.student_spelling.token_bytes(i) for i in token_ids], opening.own_text)
        text = b"".join(ours)
        if split is None:
            their_ids = self.teacher_spelling.encode(lead + text)
        else:
            their_ids = [i for part in (lead, *split(ours)) for i in self.teacher_spelling.encode(part)]
        theirs = without_lead([self.teacher_spelling.token_bytes(i) for i in their_ids], lead)
        num_lead = next((n for n, token in enumerate(theirs) if token), len(their_ids))
        out.add(their_ids[:num_lead], is_response=False)
        first = sum(out.response_mask)
        out.add(their_ids[num_lead:], is_response=True)
        spans = self.teacher_spelling.spans_in(theirs[num_lead:], text)
        out.alignment = out.alignment.then(align(spans_of(ours, text), spans), index, first)


def each_token(token_bytes: list[bytes]) -> list[bytes]:
    """Split a text segment at every token of the student."""
    return token_bytes


def without_lead(token_bytes: list[bytes], lead: bytes) -> list[bytes]:
    """Return the bytes of tokens without those of `lead`, if together they begin with it."""
    if not b"".join(token_bytes).startswith(lead):
        return token_bytes
    rest, num_left = [], len(lead)
    for token in token_bytes:
        rest.append(token[num_left:])
        num_left = max(0, num_left - len(token))
    return rest
