"""Kinds of replies and answers, and whether a chat template shows episodes of such kinds as they were."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from typing_extensions import override

from lightning_opd.errors import ConfigError
from lightning_opd.tokenization.template_cache import by_template
from lightning_opd.tokenization.thoughts import Tags, thought_tags
from lightning_opd.tokenization.turn_borders import USER
from lightning_opd.tokenization.turns import first_difference
from lightning_opd.types import TEMPLATE_SETTINGS, Message, Messages

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TOOL = "look_up"
"""The tool of small chats."""


@dataclass(frozen=True)
class Exchange:
    """A reply and the answer to it, as far as a chat template may go by them.

    Args:
        roles: Of the messages that answer.
        num_calls: Tools that the reply calls.
        has_thought: Whether it closes a thought.
    """

    roles: tuple[str, ...]
    num_calls: int = 0
    has_thought: bool = False

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, reply: Message, answer: Messages) -> Exchange:
        """Return what kind of exchange this is.

        Args:
            tokenizer: Whose template tells what closes a thought.
            reply: As its environment read it, its content as the student generated it.
            answer: Of the environment.
        """
        roles = tuple(str(message.get("role")) for message in answer)
        has_thought = thought_tags(tokenizer)[1] in str(reply.get("content"))
        return cls(roles, len(cast("Sequence[object]", reply.get("tool_calls") or ())), has_thought)

    def messages(self, tags: Tags, num_before: int) -> list[Message]:
        """Return a small exchange of this kind.

        Args:
            tags: What opens and closes a thought.
            num_before: Calls of the chat before it.
        """
        ids = [f"call{num_before + i:05d}" for i in range(self.num_calls)]
        said = "" if ids else "It is so."
        if self.has_thought:
            said = "\n".join([tags[0], "Why?", tags[1], "", said])
        function: Mapping[str, object] = {"name": TOOL, "arguments": {"key": "value"}}
        calls = [{"id": i, "type": "function", "function": function} for i in ids]
        answers: list[Message] = [{"role": role, "content": "Yes."} for role in self.roles]
        for n, answer in enumerate(answers):
            if answer["role"] == "tool":
                answers[n] = {**answer, "name": TOOL, "tool_call_id": f"call{num_before + n % (len(ids) or 1):05d}"}
        return [{"role": "assistant", "content": said, **({"tool_calls": calls} if calls else {})}, *answers]

    @override
    def __str__(self) -> str:
        """Name the kind of the reply."""
        return ("tool calls" if self.num_calls else "replies") + (" with thoughts" if self.has_thought else "")


def check_turns(tokenizer: PreTrainedTokenizerBase, messages: Messages, exchanges: Sequence[Exchange]) -> None:
    """Raise where an episode's tokens would not be those of its whole chat.

    A student keeps the tokens that it generated in the context of its next turns. A template that renders earlier
    turns otherwise, for example without their thoughts once a user's message follows, would show it another context
    once it is trained. To be asked at each answer: only what the newest exchange changes is looked for. The check goes
    by the kinds of all exchanges so far, and by the chat's own settings of the template.

    Args:
        tokenizer: With the template.
        messages: The chat before the first reply.
        exchanges: Of the episode, up to the newest one.

    Raises:
        ConfigError: With the first tokens that differ.
    """
    difference = _difference(tokenizer, json.dumps(messages[0].get(TEMPLATE_SETTINGS)), tuple(exchanges))
    if difference:
        kinds = ", then ".join(dict.fromkeys(map(str, exchanges)))
        msg = (
            f"The chat template of `{tokenizer.name_or_path}` renders {kinds} otherwise once a message of role "
            f"`{exchanges[-1].roles[0]}` follows: {difference}. The student would be trained on tokens that it never "
            "reads later. Use a template that keeps every turn as it was generated (chat_template.jinja beside the "
            f"tokenizer, or `chat_template_kwargs`), or set `data.sampling.max_turns` to {len(exchanges)}."
        )
        raise ConfigError(msg)


def check_first_turn(tokenizer: PreTrainedTokenizerBase, messages: Messages, kinds: Sequence[Exchange]) -> None:
    """Raise where no episode could go on after its first reply, whatever kind that is of.

    Args:
        tokenizer: With the template.
        messages: The chat before the first reply.
        kinds: Of the first exchanges that there may be, the likeliest first.

    Raises:
        ConfigError: What `check_turns` says of the first kind, where it refuses all of them.
    """
    refused: list[ConfigError] = []
    for kind in kinds:
        try:
            return check_turns(tokenizer, messages, [kind])
        except ConfigError as error:
            refused.append(error)
    if refused:
        raise refused[0]
    return None


@by_template
def _difference(tokenizer: PreTrainedTokenizerBase, settings: str, exchanges: tuple[Exchange, ...]) -> str | None:
    """Return the difference that the last exchange makes in a small chat of the same kinds."""
    chat: list[Message] = [{**USER, TEMPLATE_SETTINGS: json.loads(settings)}]
    num_calls = start = 0
    for exchange in exchanges:
        start = len(chat)
        chat += exchange.messages(thought_tags(tokenizer), num_calls)
        num_calls += exchange.num_calls
    return first_difference(tokenizer, chat, start)
