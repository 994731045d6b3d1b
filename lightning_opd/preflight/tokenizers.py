"""A teacher's tokenizer beside the student's: vocabulary, stop tokens, special tokens, chat template."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from lightning_opd.errors import ConfigError
from lightning_opd.interfaces import ReadsStudentTokens, Teacher
from lightning_opd.preflight.report import Check, Status
from lightning_opd.teachers import CrossTokenizerTeacher
from lightning_opd.tokenization.compatibility import check_same_vocabulary
from lightning_opd.tokenization.rendering import render
from lightning_opd.tokenization.turn_borders import stop_token_ids
from lightning_opd.types import Message, Messages

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

QUESTION: Message = {"role": "user", "content": "What is 27 + 48?"}
MAX_SHOWN = 160


def compare_tokenizers(
    name: str, teacher: Teacher, student: PreTrainedTokenizerBase, chat: Messages = (QUESTION,)
) -> Iterator[Check]:
    """Yield what a teacher's tokenizer has in common with the student's, and what not.

    A teacher that reads the student's tokens must have the student's vocabulary, and reads the student's template:
    that it has another one is worth a note. One with its own tokenizer reads chats in its own template.

    Args:
        name: Of the teacher.
        teacher: Any; one that has no tokenizer is passed over.
        student: The student's tokenizer.
        chat: Rendered by both.

    Raises:
        ConfigError: The vocabularies differ where they must not.
    """
    if isinstance(teacher, ReadsStudentTokens):
        own, differs = teacher.tokenizer(), Status.NOTE
        check_same_vocabulary(student, own, name)
        yield Check(f"{name}: vocabulary", f"the student's ({len(own):,} tokens)", values={"num_tokens": len(own)})
    elif isinstance(teacher, CrossTokenizerTeacher):
        own, differs = teacher.own_tokenizer(), Status.PASSED
        text = f"its own of {len(own):,} tokens beside the student's {len(student):,}"
        if own.get_vocab() == student.get_vocab():
            text = f"the student's ({len(own):,} tokens): nothing is re-encoded"
        yield Check(f"{name}: vocabulary", text, values={"num_tokens": len(own)})
    else:
        return
    pairs = {
        "stop tokens": (_stops(student), _stops(own)),
        "special tokens": (_special(student), _special(own)),
        "template": (_rendered(student, chat), _rendered(own, chat)),
    }
    for what, (ours, theirs) in pairs.items():
        values = {"student": ours, "teacher": theirs}
        if ours == theirs:
            yield Check(f"{name}: {what}", f"the same: {ours}", values=values)
        else:
            yield Check(f"{name}: {what}", f"student {ours}; teacher {theirs}", differs, values)


def _stops(tokenizer: PreTrainedTokenizerBase) -> str:
    try:
        ids = stop_token_ids(tokenizer)
    except ConfigError:
        return "none"
    return ", ".join(sorted(str(tokenizer.convert_ids_to_tokens(i)) for i in ids))


def _special(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the special tokens that have a role."""
    named = {role.removesuffix("_token"): token for role, token in tokenizer.special_tokens_map.items()}
    return ", ".join(f"{role} {token}" for role, token in sorted(named.items()) if isinstance(token, str)) or "none"


def _rendered(tokenizer: PreTrainedTokenizerBase, chat: Messages) -> str:
    """Return a chat as the template shows it, its line breaks escaped, its middle left out where it is long."""
    try:
        text = repr(render(tokenizer, chat, add_generation_prompt=True))
    except ConfigError as error:
        return f"no rendering ({error})"
    half = MAX_SHOWN // 2
    return text if len(text) <= MAX_SHOWN else f"{text[:half]} … {text[-half:]}"
