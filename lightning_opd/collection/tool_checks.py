"""Refuses chat templates that cannot show a task's tools, their calls or their answers, or keep no turn as it was."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, cast

from lightning_opd.collection.learner import Learner
from lightning_opd.errors import ConfigError
from lightning_opd.interfaces import Environment, SingleTurn, Task
from lightning_opd.tasks.tools import ToolEnvironment
from lightning_opd.teachers import CrossTokenizerTeacher
from lightning_opd.tokenization.exchanges import Exchange, check_first_turn
from lightning_opd.tokenization.rendering import render
from lightning_opd.tokenization.replies import PROBE, ReplyReader, as_message_call, call_id, reply_reader
from lightning_opd.tokenization.thoughts import opens_thought, thought_tags
from lightning_opd.tokenization.tool_calls import ToolCall
from lightning_opd.types import Message, Messages, Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ANSWER = "answer-of-the-tool"
ANSWERING = ("user", "tool", "system")
"""Roles in which environments answer, the likeliest first."""

CURE = "Use a chat template with tools (chat_template.jinja beside the tokenizer), or a task without them."


def check_tool_turns(task: Task, prompts: Iterable[Prompt], learner: Learner, max_turns: int = 1) -> None:
    """Render one tool turn for the student and for each teacher that reads chats in its own template.

    One prompt of each domain and teacher is looked at. Where its episode may go on after a reply, the student's
    template must keep some kind of reply as it was generated: only the episode itself shows of which kind its are.

    Args:
        task: Makes the environments.
        prompts: Of a split.
        learner: Knows the student's tokenizer and the teachers.
        max_turns: Most replies of an episode.

    Raises:
        ConfigError: A template refuses the turn, does not show a tool, its call or its answer, writes calls in a
            form that is not known, or renders replies of every kind otherwise once they are answered.
    """
    first: dict[tuple[str, str], Prompt] = {}
    for prompt in prompts:
        first.setdefault((prompt.domain, prompt.teacher), prompt)
    for prompt in first.values():
        environment = task.environment(prompt)
        messages = environment.reset()
        names = _tool_names(messages)
        if names or isinstance(environment, ToolEnvironment):
            _check_student(learner.tokenizer, environment, messages, names)
            teacher = learner.teachers[prompt.teacher] if prompt.teacher in learner.teachers.names else None
            if isinstance(teacher, CrossTokenizerTeacher):
                turn = _tool_turn(reply_reader(learner.tokenizer), environment, names)
                _check_template(teacher.own_tokenizer(), f"teacher `{prompt.teacher}`", messages, names, turn)
        if max_turns > 1 and not isinstance(environment, SingleTurn):
            kinds = _possible_exchanges(learner.tokenizer, environment, messages)
            check_first_turn(learner.tokenizer, messages, kinds)


def _possible_exchanges(
    tokenizer: PreTrainedTokenizerBase, environment: Environment, messages: Messages
) -> list[Exchange]:
    """Return the kinds of an episode's first reply and its answer that are possible, as far as they are known.

    A reply goes on with the thought that its prompt opens, and closes it before a call. Otherwise it may think or not.
    """
    try:
        opened = opens_thought(render(tokenizer, messages, add_generation_prompt=True), thought_tags(tokenizer))
    except ConfigError:
        return []  # the check of all prompts says so
    if isinstance(environment, ToolEnvironment):
        num_calls = int(reply_reader(tokenizer, environment.parser).shows_calls)
        return [Exchange(("tool",), num_calls, has_thought) for has_thought in sorted({opened, True})]
    return [Exchange((role,), 0, has_thought) for role in ANSWERING for has_thought in (opened, not opened)]


def _check_student(
    tokenizer: PreTrainedTokenizerBase, environment: Environment, messages: Messages, names: Sequence[str]
) -> None:
    reader = reply_reader(tokenizer, environment.parser if isinstance(environment, ToolEnvironment) else None)
    if not reader.is_known and isinstance(environment, ToolEnvironment):
        msg = (
            f"The chat template of the student `{tokenizer.name_or_path}` writes tool calls in a form that is not "
            "known, so its calls could not be read. Give the environment a `parser`, or the tokenizer a "
            "`response_template` (transformers)."
        )
        raise ConfigError(msg)
    _check_template(tokenizer, "the student", messages, names, _tool_turn(reader, environment, names))


def _check_template(
    tokenizer: PreTrainedTokenizerBase, who: str, messages: Messages, names: Sequence[str], turn: Messages
) -> None:
    """Raise if a template refuses a chat with a tool turn, or leaves something of it out."""
    template = f"The chat template of {who} (`{tokenizer.name_or_path}`)"
    try:
        prompt = render(tokenizer, messages, add_generation_prompt=True)
        whole = render(tokenizer, (*messages, *turn), add_generation_prompt=True) if turn else prompt
    except ConfigError as error:
        msg = f"{template} refuses a turn with tools: {error}"
        raise ConfigError(msg) from error
    missing = [name for name in names if name not in prompt]
    if missing:
        msg = f"{template} does not show the tools {missing}, so the model could not know them. {CURE}"
        raise ConfigError(msg)
    calls = turn and turn[0].get("tool_calls")
    if calls and not reply_reader(tokenizer).shows_calls:
        msg = f"{template} does not show tool calls, so the model would read answers to nothing. {CURE}"
        raise ConfigError(msg)
    if turn and ANSWER not in whole:
        msg = f"{template} does not show a tool's answer, so the model would wait for it in vain. {CURE}"
        raise ConfigError(msg)


def _tool_turn(reader: ReplyReader, environment: Environment, names: Sequence[str]) -> Messages:
    """Return a call and its answer; nothing for an episode of one reply."""
    if isinstance(environment, SingleTurn):
        return ()
    name = names[0] if names else PROBE.name
    call = as_message_call(ToolCall(name, {"key": "value"}), 0)
    reply: Message = {"role": "assistant", "content": "Let me see."}
    if reader.shows_calls:
        reply = {"role": "assistant", "content": "", "tool_calls": [call]}
    return reply, {"role": "tool", "tool_call_id": call_id(0), "name": name, "content": ANSWER}


def _tool_names(messages: Messages) -> list[str]:
    schemas = cast("Sequence[Mapping[str, object]]", (messages[0].get("tools") or ()) if messages else ())
    return [str(cast("Mapping[str, object]", schema.get("function", schema)).get("name")) for schema in schemas]
