"""Format rules: what a well-formed reply must not do, each rule named and counted."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from typing_extensions import override

from lightning_opd.interfaces import FormatRule
from lightning_opd.tokenization.tool_calls import CLOSE, OPEN, call_bodies, parse_tool_call
from lightning_opd.types import Trajectory


class NamedRule(FormatRule):
    """A rule whose name is its class's in snake case."""

    @property
    @override
    def name(self) -> str:
        return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", type(self).__name__).lower()


@dataclass(frozen=True)
class Truncated(NamedRule):
    """The reply hit the length limit instead of stopping."""

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
    """A tool call is not JSON of the form `{"name": …, "arguments": {…}}`."""

    @override
    def is_broken(self, trajectory: Trajectory) -> bool:
        return any(parse_tool_call(body) is None for body in call_bodies(trajectory.text))


@dataclass(frozen=True)
class UnknownTool(NamedRule):
    """A well-formed call names a tool that the task does not have."""

    tools: Sequence[str]

    @override
    def is_broken(self, trajectory: Trajectory) -> bool:
        calls = [parse_tool_call(body) for body in call_bodies(trajectory.text)]
        return any(call is not None and call.name not in self.tools for call in calls)


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
