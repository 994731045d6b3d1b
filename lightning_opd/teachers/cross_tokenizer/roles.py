"""Control tokens by their role, so that one tokenizer's can be mapped to another's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from lightning_opd.errors import ConfigError
from lightning_opd.tokenization.replies import call_format
from lightning_opd.tokenization.tool_calls import TaggedJson
from lightning_opd.tokenization.turn_borders import turn_ending_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

END_OF_TURN = "end_of_turn"
SPELLINGS: Mapping[str, tuple[str, ...]] = {
    "think_open": ("<think>", "<thinking>", "[THINK]", "<|begin_of_thought|>"),
    "think_close": ("</think>", "</thinking>", "[/THINK]", "<|end_of_thought|>"),
    "tool_call_open": ("<tool_call>", "[TOOL_CALLS]", "<|python_tag|>", "<｜tool▁call▁begin｜>"),  # noqa: RUF001  # DeepSeek's
    "tool_call_close": ("</tool_call>", "<｜tool▁call▁end｜>"),  # noqa: RUF001  # DeepSeek's
}
"""Role → its tokens in model families; a role is found only where it is one token."""

PAIRED_ROLES = ("think_open", "think_close")
"""Roles whose tokens stand for one another: around them stands plain text."""

CALL_ROLES = ("tool_call_open", "tool_call_close")
"""Roles of tokens after which families write different formats (a JSON object, a JSON list, XML, Python), so that only
tokens of one name are pairs, where both chat templates write calls in one format."""

ROLES = (END_OF_TURN, *SPELLINGS)


@dataclass(frozen=True)
class RoleTable:
    """Which control token of the teacher stands for which of the student.

    Args:
        pairs: Student id → teacher id; control tokens that are not here have no counterpart.
        names: Student id → role, for those that have one.
        student_ids: All control tokens of the student.
        teacher_ids: All control tokens of the teacher.
    """

    pairs: Mapping[int, int]
    names: Mapping[int, str]
    student_ids: frozenset[int]
    teacher_ids: frozenset[int]


def role_table(
    student: PreTrainedTokenizerBase,
    teacher: PreTrainedTokenizerBase,
    overrides: Mapping[str, str | None] | None = None,
    stop_token_ids: Sequence[int] = (),
) -> RoleTable:
    """Find the counterpart of each of the student's control tokens.

    In order of precedence: what is given; control tokens of the same name, except those of tool calls that the two
    chat templates write in different formats, and an end of turn that does not end the teacher's turns; ends of a turn
    (whatever stops a reply, and what the chat template closes one with); thoughts by their known spellings.

    Args:
        student: The student's tokenizer.
        teacher: The teacher's tokenizer.
        overrides: Student's token → teacher's token, or None for no counterpart.
        stop_token_ids: More tokens that end the student's replies.

    Raises:
        ValueError: A given token is not one token of its tokenizer.
    """
    overrides = overrides or {}
    given = {_id(student, ours): None if theirs is None else _id(teacher, theirs) for ours, theirs in overrides.items()}
    ours, theirs = control_tokens(student), control_tokens(teacher)
    same = (ours.keys() & theirs.keys()) - _markers_of_other_calls(student, teacher)
    pairs: dict[int, int | None] = {ours[token]: theirs[token] for token in same}
    names: dict[int, str] = {}
    for role, spellings in SPELLINGS.items():
        counterparts = [theirs[token] for token in spellings if token in theirs]
        for token in spellings:
            if token in ours:
                names[ours[token]] = role
                if counterparts and role in PAIRED_ROLES and ours[token] not in pairs:
                    pairs[ours[token]] = counterparts[0]
    stops = turn_ends(teacher)
    ends = [*turn_ends(student), *stop_token_ids]
    for token_id in ends:
        names[token_id] = END_OF_TURN
        if stops and pairs.get(token_id) not in stops:
            pairs[token_id] = stops[0]
    pairs |= given
    return RoleTable(
        {own: other for own, other in pairs.items() if other is not None},
        names,
        frozenset({*ours.values(), *given, *ends}),
        frozenset({*theirs.values(), *stops}) | {token_id for token_id in given.values() if token_id is not None},
    )


def _markers_of_other_calls(student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase) -> set[str]:
    """Return what marks tool calls if both sides write them in different or unknown formats, else nothing.

    `<tool_call>` opens a JSON object in Qwen 3 and XML in Qwen3-Coder: one name, but another thing to say next.
    """
    formats = [call_format(tokenizer) for tokenizer in (student, teacher)]
    forms = [form for form, _ in formats if form is not None]
    is_same = student.chat_template == teacher.chat_template or (formats[0] == formats[1] and forms)
    markers = {marker for form in (*forms, TaggedJson()) for marker in form.markers}
    return set() if is_same else markers | {token for role in CALL_ROLES for token in SPELLINGS[role]}


def control_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """Return name → id of the added tokens that are no text: those marked special, and those with a known role."""
    known = {token for spellings in SPELLINGS.values() for token in spellings}
    added = tokenizer.added_tokens_decoder
    return {str(entry): token_id for token_id, entry in added.items() if entry.special or str(entry) in known}


def turn_ends(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the tokens that end a turn: first those with which the chat template closes a reply."""
    stop = tokenizer.eos_token_id
    ends = turn_ending_ids(tokenizer)
    return list(dict.fromkeys(ends if stop is None else [*ends, int(cast("int", stop))]))


def _id(tokenizer: PreTrainedTokenizerBase, token: str) -> int:
    token_id = tokenizer.get_vocab().get(token)
    if token_id is None:
        msg = (
            f"`roles` names `{token}`, which is not one token of the tokenizer `{tokenizer.name_or_path}`. Give the "
            "student's token → the teacher's token as their vocabularies write them, or null for no counterpart."
        )
        raise ConfigError(msg)
    return token_id
