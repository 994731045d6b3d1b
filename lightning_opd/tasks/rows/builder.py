"""A row as a prompt: its chat, its teacher, its answer and its demonstration."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence

from lightning.pytorch.utilities.rank_zero import rank_zero_info

from lightning_opd.errors import ConfigError
from lightning_opd.tasks.answers import AnswerReward, answers_of
from lightning_opd.tasks.rows.chats import chat_of, is_sharegpt, parsed, prepared, text_of, with_system
from lightning_opd.tasks.rows.columns import USUAL, Columns
from lightning_opd.tasks.rows.source import Row
from lightning_opd.tasks.splits import question_key
from lightning_opd.types import TEMPLATE_SETTINGS, Message, Prompt
from lightning_opd.types.mixtures import mixture_name

_ENCODER = json.JSONEncoder(sort_keys=True)


_CHAT_AS_TEXT = re.compile(r"\s*\[\s*\{\s*['\"](?:role|content|from|value)['\"]\s*:")


class PromptBuilder:
    """Makes prompts of rows.

    Args:
        columns: Which column is what.
        match: Says what an answer has to be.
        teacher: Of all rows; None takes it from each row.
        system_prompt: Of all rows that have no system message.
    """

    def __init__(self, columns: Columns, match: AnswerReward, teacher: str | None, system_prompt: str | None) -> None:
        """Remember the settings."""
        self.columns, self._match, self._teacher, self._system = columns, match, teacher, system_prompt
        self._questions = {"messages", "prompt", *(columns.mapping.get(x, x) for x in ("messages", "prompt"))}
        self._has_said = False

    def build(self, row: Row, place: str) -> Prompt:
        """Return a row's prompt.

        Args:
            row: Column → value.
            place: File and line, for messages.

        Raises:
            ConfigError: The row lacks something, or has something that is of no use.
        """
        chat = self._chat(row, place)
        columns = {key: value for key, value in row.items() if key not in self._questions}
        self._set_answer(columns, row, place)
        teacher = self._teacher if self._teacher is not None else self._teacher_of(row, place)
        domain = teacher
        if "domain" in self.columns.mapping:
            domain = str(self.columns.get("domain", row))
            if self.columns.get("domain", row) is None:
                raise self.columns.missing("domain", row, place)
        demonstration = self._demonstration(row, place)
        if chat[-1]["role"] == "assistant":
            if demonstration is not None and demonstration["content"] != text_of(chat[-1]):
                msg = (
                    f"{place}: the row has two replies: the assistant's message at the end of its messages, and "
                    "`response` or `completion`. Leave one out."
                )
                raise ConfigError(msg)
            demonstration, chat = chat[-1], chat[:-1]
        for name in ("response", "tool_calls"):
            if name == "response" or not columns.get(name):
                columns.pop(name, None)
        if demonstration is not None:
            columns |= {key: demonstration[key] for key in ("tool_calls",) if key in demonstration}
            if demonstration.get("content") is not None:
                columns["response"] = text_of(demonstration)
        key = self._key(chat, place)
        if self._system:
            chat = with_system(chat, self._system)
        return Prompt(chat, key, teacher, domain, columns, place)

    def _chat(self, row: Row, place: str) -> tuple[Message, ...]:
        found = self.columns.one_of("prompt", "messages", row, place)
        if found is None:
            name = next((name for name in ("prompt", "messages") if name in self.columns.mapping), "prompt")
            raise self._sharegpt_error(row, place) or self.columns.missing(name, row, place)
        name, value = found
        column = self.columns.mapping.get(name, name)
        if name == "prompt" and isinstance(value, str):
            if _CHAT_AS_TEXT.match(value):
                msg = f"{place}: `{column}` holds messages as text. Name it so: `columns: {{messages: {column}}}`."
                raise ConfigError(msg)
            chat: list[Message] = [{"role": "user", "content": value}]
        elif name == "prompt" and not isinstance(value, Sequence):
            msg = (
                f"{place}: expected `{column}` as a text or a list of messages (`prompt` or `messages`), got "
                f"{type(value).__name__} {str(value)[:40]}. Correct the row."
            )
            raise ConfigError(msg)
        else:
            self._say_if_converted(value, place, column)
            chat = chat_of(value, place, column)
        system = self.columns.get("system", row) if "system" in self.columns.mapping else None
        settings = self.columns.get(TEMPLATE_SETTINGS, row)
        if isinstance(settings, str) and settings.lstrip().startswith("{"):
            settings = parsed(settings, place, TEMPLATE_SETTINGS)
        prompt = prepared(chat, self.columns.get("tools", row), settings, place)
        return prompt if system is None else with_system(prompt, str(system))

    def _say_if_converted(self, value: object, place: str, column: str) -> None:
        is_other = isinstance(value, Sequence) and bool(value) and is_sharegpt(value[0])
        if is_other and not self._has_said:
            self._has_said = True
            rank_zero_info(f"{place}: `{column}` has `from` and `value`; they are read as `role` and `content`.")

    def _sharegpt_error(self, row: Row, place: str) -> ConfigError | None:
        for column in USUAL["messages"] if not self.columns.mapping.keys() & {"prompt", "messages"} else ():
            value = row.get(column)
            if isinstance(value, Sequence) and value and is_sharegpt(value[0]):
                said = f"{place}: the row is in ShareGPT's form (`{column}` with `from` and `value`)."
                return ConfigError(f"{said} Set `columns: {{messages: {column}}}`; roles and keys are then converted.")
        return None

    def _teacher_of(self, row: Row, place: str) -> str:
        value, column = self.columns.get("teacher", row), self.columns.mapping.get("teacher", "teacher")
        if value is None:
            raise self.columns.missing("teacher", row, place)
        if isinstance(value, str) and value.lstrip().startswith("{"):
            value = parsed(value, place, column)
        if isinstance(value, Mapping) and value and all(isinstance(name, str) and name for name in value):
            weights = {name: weight for name, weight in value.items() if weight is not None}  # a table's empty fields
            try:
                return mixture_name(weights)
            except ConfigError as error:
                msg = f"{place}: in `{column}`, {error}. Correct the row."
                raise ConfigError(msg) from None
        if not isinstance(value, str) or not value:
            msg = (
                f"{place}: expected the teacher's name in `{column}`, or teachers with their weights, got "
                f"{str(value)[:60]!r}. Correct the row, or set `teacher: …` for all rows."
            )
            raise ConfigError(msg)
        return value

    def _set_answer(self, columns: dict[str, object], row: Row, place: str) -> None:
        answer = self.columns.get("answer", row)
        if "answer" in self.columns.mapping:
            columns.pop("answer", None)
            if answer is not None:
                columns["answer"] = answer
        if answer is None:
            return
        name = self.columns.mapping.get("answer", "answer")
        values = answer if isinstance(answer, list | tuple) else [answer]
        for value in values:
            is_endless = isinstance(value, float) and not math.isfinite(value)
            if value is None or is_endless or isinstance(value, Mapping | list | tuple):
                msg = (
                    f"{place}: expected `{name}` as a text, a number or a list of these, got {str(answer)[:60]}. "
                    "Correct the row; one without an answer leaves it out."
                )
                raise ConfigError(msg)
        if not values:
            msg = f"{place}: `{name}` is an empty list, so that no reply is right. Leave it out, or fill it."
            raise ConfigError(msg)
        for text in answers_of(answer):
            expected = self._match.expects(text)
            if expected is not None:
                cure = "Correct the line, or use `match: exact`."
                msg = f"{place}: expected {expected} in `{name}`, got {text[:60]!r}. {cure}"
                raise ConfigError(msg)

    def _demonstration(self, row: Row, place: str) -> Message | None:
        found = self.columns.one_of("response", "completion", row, place)
        if found is None:
            return None
        column, value = self.columns.mapping.get(found[0], found[0]), found[1]
        is_number = isinstance(value, int | float) and math.isfinite(value)
        if isinstance(value, str) or is_number:
            calls = {"tool_calls": row["tool_calls"]} if row.get("tool_calls") else {}
            return {"role": "assistant", "content": str(value), **calls}
        reply = value[0] if isinstance(value, Sequence) and len(value) == 1 else None
        if not isinstance(reply, Mapping) or reply.get("role") != "assistant":
            got = f"a list of {len(value)}" if isinstance(value, Sequence) else str(value)[:40]
            msg = f"{place}: expected `{column}` as a text or a list of one message of the assistant, got {got}."
            raise ConfigError(f"{msg} Correct the row; longer chats belong into `messages`.")
        chat = chat_of([{"role": "user", "content": ""}, reply], place, column)
        return prepared(chat, None, None, place)[-1]

    def _key(self, chat: Sequence[Message], place: str) -> str:
        try:
            return question_key(_ENCODER.encode(chat))
        except (TypeError, ValueError) as error:
            msg = f"{place}: the messages hold what JSON cannot ({error}). Use texts, numbers, lists and mappings."
            raise ConfigError(msg) from None
