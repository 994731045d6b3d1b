"""What stands between a prompt and the first word of a reply, on either side: leads of templates, opened thoughts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from lightning_opd.errors import ConfigError
from lightning_opd.teachers.cross_tokenizer.roles import SPELLINGS, RoleTable, control_tokens
from lightning_opd.tokenization.chat import render_prompt
from lightning_opd.tokenization.rendering import encode, render
from lightning_opd.tokenization.turn_borders import USER, reply_surroundings, surroundings_of_reply_to
from lightning_opd.types import TEMPLATE_SETTINGS, Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from lightning_opd.teachers.cross_tokenizer.spelling import ByteSpelling


@dataclass(frozen=True)
class Opening:
    """How a reply begins for the teacher.

    Args:
        token_ids: The teacher's tokens after its prompt that nobody generated: they belong to the prompt.
        text: Text (bytes) after them that nobody generated, tokenised with the reply's first words, as a teacher does.
        num_skipped: So many of the student's first tokens are not shown: the teacher's prompt has them.
        own_text: Text with which the student's reply may begin, and which is not shown either.
    """

    token_ids: tuple[int, ...] = ()
    text: bytes = b""
    num_skipped: int = 0
    own_text: bytes = b""


class Openings:
    """Finds out how the replies of a student begin for a teacher.

    A template may put a lead between the generation prompt and a reply, for example an empty thought (Qwen 3). Its
    control tokens are the teacher's, and only the plain text after the last of them is tokenised with the reply. A
    reply that thinks takes the place of an empty thought; and where one side's generation prompt opens a thought, the
    other side opens it once, too.

    Args:
        student: The student's tokenizer and spelling.
        teacher: The teacher's.
        roles: Counterparts of control tokens.

    Attributes:
        depends_on: Whether a chat's own settings of the template, as JSON, have its reply begin in another way.
    """

    def __init__(
        self,
        student: tuple[PreTrainedTokenizerBase, ByteSpelling],
        teacher: tuple[PreTrainedTokenizerBase, ByteSpelling],
        roles: RoleTable,
    ) -> None:
        """Render a prompt and a reply by both templates."""
        self._roles, self._student_spelling = roles, student[1]
        self._own_opened, self._opened = (_opened_thought(*side) for side in (student, teacher))
        own_lead, lead = (_lead(*side) for side in (student, teacher))
        self._own_text = b"" if own_lead.token_ids else own_lead.text
        self._lead = lead
        control = control_tokens(teacher[0])
        self._think_ids = tuple(control[token] for token in SPELLINGS["think_open"] if token in control)[:1]
        self._teacher_spelling, self._tokenizers = teacher[1], (student[0], teacher[0])
        self.depends_on = lru_cache(self._begins_otherwise)  # rows have few different settings

    def __call__(self, token_ids: Sequence[int]) -> Opening:
        """Return how a reply of the student begins for the teacher."""
        first = token_ids[0] if token_ids else None
        is_thought = first is not None and self._roles.names.get(first) == "think_open"
        if self._opened is not None:  # the teacher's prompt has opened the thought
            return Opening(own_text=self._opened if is_thought else b"", num_skipped=int(is_thought))
        if is_thought or self._types_a_thought(token_ids):
            return Opening() if self._lead.token_ids else Opening(text=self._lead.text, own_text=self._own_text)
        if self._own_opened is not None:  # the student thinks, since its prompt made it
            return Opening(self._think_ids, self._own_opened) if self._think_ids else Opening()
        return Opening(self._lead.token_ids, self._lead.text, own_text=self._own_text)

    def _begins_otherwise(self, settings: str) -> bool:
        """Return whether a chat's own settings of the template, as JSON, have its reply begin in another way."""
        given: Message = {**USER, TEMPLATE_SETTINGS: json.loads(settings)}
        return any(_after_user(tokenizer, given) != _after_user(tokenizer, USER) for tokenizer in self._tokenizers)

    def _types_a_thought(self, token_ids: Sequence[int]) -> bool:
        """Whether the reply begins with a thought in plain text, from a student that has no token for it."""
        longest = max(map(len, SPELLINGS["think_open"]))
        text = b"".join(self._student_spelling.token_bytes(i) for i in token_ids[: longest + 1]).lstrip()
        return any(text.startswith(spelling.encode()) for spelling in SPELLINGS["think_open"])


def _after_user(tokenizer: PreTrainedTokenizerBase, message: Message) -> str:
    """Return what the template puts between a message and a reply to it."""
    shown, _ = surroundings_of_reply_to(message, tokenizer)
    return render(tokenizer, [message], add_generation_prompt=True).rpartition(str(USER["content"]))[2] + shown


def _lead(tokenizer: PreTrainedTokenizerBase, spelling: ByteSpelling) -> Opening:
    """Return what the template puts before a reply."""
    try:
        lead, _ = reply_surroundings(tokenizer)
    except ConfigError:
        return Opening()
    return Opening(*_parted(encode(tokenizer, lead), spelling, lead))


def _parted(token_ids: list[int], spelling: ByteSpelling, text: str) -> tuple[tuple[int, ...], bytes]:
    """Return tokens up to the last control token, and the text after it."""
    ends = [n for n, token_id in enumerate(token_ids, 1) if token_id in spelling.control_ids]
    if not ends:
        return (), text.encode()
    return tuple(token_ids[: ends[-1]]), b"".join(spelling.token_bytes(i) for i in token_ids[ends[-1] :])


def _opened_thought(tokenizer: PreTrainedTokenizerBase, spelling: ByteSpelling) -> bytes | None:
    """Return the text after the thought that the generation prompt opens, or None where it opens none."""
    try:
        token_ids = render_prompt(tokenizer, [USER])
    except ConfigError:
        return None
    opens = {token_id for token, token_id in control_tokens(tokenizer).items() if token in SPELLINGS["think_open"]}
    before, text = _parted(token_ids, spelling, "")
    return text if before and before[-1] in opens else None
