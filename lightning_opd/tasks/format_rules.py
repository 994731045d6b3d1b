"""Format rules: what a well-formed reply must not do; each rule has a name and is counted.

Each reply of an episode is checked by itself; a rule sees the episode up to and including it. Tags and control
tokens that a rule is not given are those of the student's tokenizer and chat template.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from typing_extensions import override

from lightning_opd.interfaces import FormatRule
from lightning_opd.tokenization.rendering import control_token_ids
from lightning_opd.tokenization.replies import ReplyReader, reply_reader
from lightning_opd.tokenization.thoughts import count_thoughts, opens_thought
from lightning_opd.tokenization.tool_calls import CLOSE, OPEN, TaggedJson, ToolCall, ToolCallParser
from lightning_opd.tokenization.tool_schema import Schema, argument_error, typed_arguments
from lightning_opd.types import Trajectory

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CONTROL_TOKEN = r"<\|[^|<>\s]+\|>"
"""What most control tokens look like; for students whose tokenizer is not known."""

NUM_TOKENS_BEFORE = 32
"""Tokens before a reply that tell whether it begins inside a thought."""


@dataclass(frozen=True)
class Student:
    """How a student's replies are read, and its tokenizer."""

    reader: ReplyReader = field(default_factory=ReplyReader)
    tokenizer: PreTrainedTokenizerBase | None = None

    def prompt(self, trajectory: Trajectory) -> str:
        """Return the end of the text before the last reply; nothing where the tokens are not known."""
        if self.tokenizer is None or not trajectory.turns:
            return ""
        start = trajectory.turns[-1].start
        before = trajectory.token_ids[max(0, start - NUM_TOKENS_BEFORE) : start]
        return str(self.tokenizer.decode(list(before), skip_special_tokens=False, clean_up_tokenization_spaces=False))


class NamedRule(FormatRule):
    """A rule whose name is its class's in snake case."""

    @property
    @override
    def name(self) -> str:
        return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", type(self).__name__).lower()


@dataclass(frozen=True)
class _Bound(FormatRule):
    """A rule under the name that it had before the student's tags were known; None cannot be broken."""

    bound_name: str
    rule: FormatRule | None

    @property
    @override
    def name(self) -> str:
        return self.bound_name

    @override
    def is_broken(self, trajectory: Trajectory) -> bool:
        return self.rule is not None and self.rule.is_broken(trajectory)


@dataclass(frozen=True)
class Truncated(NamedRule):
    """The reply reached the length limit before a stop token."""

    @override
    def is_broken(self, trajectory: Trajectory) -> bool:
        return trajectory.is_truncated


@dataclass(frozen=True)
class UnbalancedTags(NamedRule):
    """A tag is left open, nested in itself, or closed without being open.

    Args:
        open_tag: By default what opens a tool call of the student; what a thought mentions is then left out.
        close_tag: By default what closes it.
    """

    open_tag: str | None = None
    close_tag: str | None = None
    student: Student = field(default=Student(), repr=False)
    is_outside: bool = field(default=False, repr=False)

    @property
    @override
    def name(self) -> str:
        return f"unbalanced_{(self.open_tag or OPEN).strip('<>')}"

    @override
    def for_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> FormatRule:
        if self.open_tag is not None:
            return self
        student = Student(reply_reader(tokenizer), tokenizer)
        tags = student.reader.parser.tags
        return _Bound(self.name, None if tags is None else UnbalancedTags(*tags, student, is_outside=True))

    @override
    def is_broken(self, trajectory: Trajectory) -> bool:
        open_tag, close_tag, text = self.open_tag or OPEN, self.close_tag or CLOSE, trajectory.text
        if self.is_outside:
            _, text = self.student.reader.split(text, self.student.prompt(trajectory))
        tags = re.findall(f"{re.escape(open_tag)}|{re.escape(close_tag)}", text)
        return tags != [open_tag, close_tag] * (len(tags) // 2)


def _calls(trajectory: Trajectory, parser: ToolCallParser | None, student: Student | None) -> Sequence[ToolCall | None]:
    """Return the calls of the last reply, outside of thoughts."""
    known = student or Student(ReplyReader(parser or TaggedJson()))
    return known.reader.calls(trajectory.text, known.prompt(trajectory))


@dataclass(frozen=True)
class UnparsableToolCall(NamedRule):
    """A tool call is not of the form that its parser reads, such as `{"name": …, "arguments": {…}}`.

    Args:
        parser: Finds the calls; by default in the form of the student's chat template.
    """

    parser: ToolCallParser | None = None
    student: Student | None = field(default=None, repr=False)

    @override
    def for_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> FormatRule:
        return replace(self, student=Student(reply_reader(tokenizer, self.parser), tokenizer))

    @override
    def is_broken(self, trajectory: Trajectory) -> bool:
        return None in _calls(trajectory, self.parser, self.student)


@dataclass(frozen=True)
class UnknownTool(NamedRule):
    """A well-formed call names a tool that the task does not have.

    Args:
        tools: Names of the task's tools.
        parser: Finds the calls; by default in the form of the student's chat template.
    """

    tools: Sequence[str]
    parser: ToolCallParser | None = None
    student: Student | None = field(default=None, repr=False)

    @override
    def for_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> FormatRule:
        return replace(self, student=Student(reply_reader(tokenizer, self.parser), tokenizer))

    @override
    def is_broken(self, trajectory: Trajectory) -> bool:
        calls = _calls(trajectory, self.parser, self.student)
        return any(call is not None and call.name not in self.tools for call in calls)


@dataclass(frozen=True)
class WrongArguments(NamedRule):
    """A call of a known tool has arguments that the tool does not take.

    Args:
        schemas: Tool's name → its JSON schema.
        parser: Finds the calls; by default in the form of the student's chat template.
    """

    schemas: Mapping[str, Schema]
    parser: ToolCallParser | None = None
    student: Student | None = field(default=None, repr=False)

    @override
    def for_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> FormatRule:
        return replace(self, student=Student(reply_reader(tokenizer, self.parser), tokenizer))

    @override
    def is_broken(self, trajectory: Trajectory) -> bool:
        for call in _calls(trajectory, self.parser, self.student):
            schema = None if call is None else self.schemas.get(call.name)
            if call is not None and schema is not None and argument_error(schema, typed_arguments(schema, call)):
                return True
        return False


@dataclass(frozen=True)
class TextAfterFinalTag(NamedRule):
    """The reply goes on after its last closing tag.

    Args:
        tag: By default what ends the last tool call of the student.
    """

    tag: str | None = None

    @override
    def for_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> FormatRule:
        if self.tag is not None:
            return self
        tag = reply_reader(tokenizer).parser.final_tag
        return _Bound(self.name, None if tag is None else TextAfterFinalTag(tag))

    @override
    def is_broken(self, trajectory: Trajectory) -> bool:
        _, found, rest = trajectory.text.rpartition(self.tag or CLOSE)
        return bool(found) and bool(rest.strip())


@dataclass(frozen=True)
class ThinkOnce(NamedRule):
    """The reply has no thought, or more than one; one that the prompt opened counts.

    Args:
        open_tag: By default what opens a thought of the student.
        close_tag: By default what closes it.
    """

    open_tag: str | None = None
    close_tag: str | None = None
    student: Student = field(default=Student(), repr=False)

    @override
    def for_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> FormatRule:
        return replace(self, student=Student(reply_reader(tokenizer), tokenizer))

    @override
    def is_broken(self, trajectory: Trajectory) -> bool:
        own = self.student.reader.thoughts
        tags = (self.open_tag or own[0], self.close_tag or own[1])
        return count_thoughts(trajectory.text, tags, is_open=opens_thought(self.student.prompt(trajectory), tags)) != 1


@dataclass(frozen=True)
class SpecialTokenInside(NamedRule):
    """A control token is inside the reply: sampled, or as text that becomes one when it is encoded again.

    Args:
        pattern: Regular expression of control tokens' text; by default those of the student's tokenizer, without the
            ones that belong to its thoughts and tool calls.
        token_ids: Further control tokens, by id; the reply's last token, which may be the stop token, is not checked.
    """

    pattern: str | None = None
    token_ids: Sequence[int] = ()

    @override
    def for_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> FormatRule:
        if self.pattern is not None:
            return self
        reader = reply_reader(tokenizer)
        texts = {token_id: str(tokenizer.convert_ids_to_tokens(token_id)) for token_id in control_token_ids(tokenizer)}
        own = {*reader.thoughts, *reader.parser.markers}
        foreign = {token_id: text for token_id, text in texts.items() if text not in own}
        pattern = "|".join(re.escape(text) for text in foreign.values()) or "(?!)"
        return SpecialTokenInside(pattern, (*self.token_ids, *foreign))

    @override
    def is_broken(self, trajectory: Trajectory) -> bool:
        return bool(re.search(self.pattern or CONTROL_TOKEN, trajectory.text)) or any(
            token in self.token_ids for token in trajectory.reply_ids[:-1]
        )
