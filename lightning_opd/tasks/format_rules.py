"""Format rules: what a well-formed reply must not do; each rule has a name and is counted.

Each reply of an episode is checked by itself; a rule sees the episode up to and including it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from typing_extensions import override

from lightning_opd.interfaces import FormatRule
from lightning_opd.tokenization.tool_calls import CLOSE, OPEN, TaggedJson, ToolCallParser
from lightning_opd.tokenization.tool_schema import Schema, argument_error
from lightning_opd.types import Trajectory


class NamedRule(FormatRule):
    """A rule whose name is its class's in snake case."""

    @property
    @override
    def name(self) -> str:
        return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", type(self).__name__).lower()


@dataclass(frozen=True)
class Truncated(NamedRule):
    """The reply reached the length limit before a stop token."""

    @override
    def is_broken(self, trajectory: Trajectory) -> bool:
        return trajectory.is_truncated


@dataclass(frozen=True)
class UnbalancedTags(NamedRule):
    """A tag is left open, nested in itself, or closed without being open."""

    open_tag: str = OPEN
    close_tag: str = CLOSE

    @property
    @override
    def name(self) -> str:
        return f"unbalanced_{self.open_tag.strip('<>')}"

    @override
    def is_broken(self, trajectory: Trajectory) -> bool:
        tags = re.findall(f"{re.escape(self.open_tag)}|{re.escape(self.close_tag)}", trajectory.text)
        return tags != [self.open_tag, self.close_tag] * (len(tags) // 2)


@dataclass(frozen=True)
class UnparsableToolCall(NamedRule):
    """A tool call is not JSON of the form that its parser reads, such as `{"name": …, "arguments": {…}}`."""

    parser: ToolCallParser = TaggedJson()

    @override
    def is_broken(self, trajectory: Trajectory) -> bool:
        return None in self.parser(trajectory.text)


@dataclass(frozen=True)
class UnknownTool(NamedRule):
    """A well-formed call names a tool that the task does not have."""

    tools: Sequence[str]
    parser: ToolCallParser = TaggedJson()

    @override
    def is_broken(self, trajectory: Trajectory) -> bool:
        return any(call is not None and call.name not in self.tools for call in self.parser(trajectory.text))


@dataclass(frozen=True)
class WrongArguments(NamedRule):
    """A call of a known tool has arguments that the tool does not take.

    Args:
        schemas: Tool's name → its JSON schema.
        parser: Finds the calls.
    """

    schemas: Mapping[str, Schema]
    parser: ToolCallParser = TaggedJson()

    @override
    def is_broken(self, trajectory: Trajectory) -> bool:
        calls = [call for call in self.parser(trajectory.text) if call is not None and call.name in self.schemas]
        return any(argument_error(self.schemas[call.name], call.arguments) is not None for call in calls)


@dataclass(frozen=True)
class TextAfterFinalTag(NamedRule):
    """The reply goes on after its last closing tag."""

    tag: str = CLOSE

    @override
    def is_broken(self, trajectory: Trajectory) -> bool:
        _, found, rest = trajectory.text.rpartition(self.tag)
        return bool(found) and bool(rest.strip())


@dataclass(frozen=True)
class ThinkOnce(NamedRule):
    """The reply has no think block, or more than one."""

    open_tag: str = "<think>"
    close_tag: str = "</think>"

    @override
    def is_broken(self, trajectory: Trajectory) -> bool:
        text = trajectory.text
        opened, closed = text.find(self.open_tag), text.find(self.close_tag)
        return text.count(self.open_tag) != 1 or text.count(self.close_tag) != 1 or opened > closed


@dataclass(frozen=True)
class SpecialTokenInside(NamedRule):
    """A control token is inside the reply: sampled, or as text that becomes one when it is encoded again.

    Args:
        pattern: Regular expression of control tokens' text.
        token_ids: Further control tokens, by id; the reply's last token, which may be the stop token, is not checked.
    """

    pattern: str = r"<\|[^|<>\s]+\|>"
    token_ids: Sequence[int] = ()

    @override
    def is_broken(self, trajectory: Trajectory) -> bool:
        return bool(re.search(self.pattern, trajectory.text)) or any(
            token in self.token_ids for token in trajectory.reply_ids[:-1]
        )
