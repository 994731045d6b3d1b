"""Your own prompts: one JSON object per line."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Literal

from typing_extensions import override

from lightning_opd.errors import ConfigError, MissingFileError
from lightning_opd.interfaces import Split, Task
from lightning_opd.tasks.answers import AnswerReward, ExactAnswer, NumberAnswer
from lightning_opd.tasks.splits import in_split, question_key
from lightning_opd.tokenization.rendering import message_error
from lightning_opd.tokenization.tool_messages import with_template_settings, with_tool_calls, with_tools
from lightning_opd.types import TEMPLATE_SETTINGS, Message, Messages, Prompt

MATCHES: Mapping[str, AnswerReward] = {"exact": ExactAnswer(), "numeric": NumberAnswer()}
"""Short names of the two that need no settings."""


class Jsonl(Task):
    """Prompts from a JSONL file: `messages` or `prompt`, the teacher's name, and perhaps an `answer`.

    Without split files the rows are split by a hash of the question: .6 train, .1 validation,
    .3 test. A row without `answer` has reward 0; distillation needs no answer. A row's `response`, or
    the assistant's message at the end of its `messages`, is its demonstration, not a part of the
    prompt. A row's `tools` (JSON schemas) are shown by the chat template, and messages may have
    `tool_calls`. The prompt keeps all other columns.

    Args:
        path: The file: all splits, or the training split if one of the other paths is set.
        validation_path: Validation prompts.
        test_path: Test prompts.
        teacher_field: Column with the teacher's name.
        domain_field: Column under which results are reported; by default the teacher's name.
        match: How a reply equals the answer: "exact" compares the stripped texts, "numeric" the
            reply's last number; or a class: `ChoiceAnswer` (a letter), `MathAnswer` (mathematics).
    """

    def __init__(
        self,
        path: str,
        validation_path: str | None = None,
        test_path: str | None = None,
        teacher_field: str = "teacher",
        domain_field: str | None = None,
        match: AnswerReward | Literal["exact", "numeric"] = "exact",
    ) -> None:
        """Remember the files; they are read and checked at first use."""
        self.teacher_field, self.domain_field = teacher_field, domain_field
        self.match = match if isinstance(match, AnswerReward) else MATCHES[match]
        self._paths: dict[Split, str | None] = {"train": path, "validation": validation_path, "test": test_path}
        self._has_split_files = bool(validation_path or test_path)
        self._read = cache(self._read_file)

    @override
    def prompts(self, split: Split) -> Sequence[Prompt]:
        if not self._has_split_files:
            return in_split(self._read(str(self._paths["train"])), split)
        path = self._paths[split]
        return [] if path is None else self._read(path)

    @override
    def reward(self, prompt: Prompt, text: str) -> float:
        answer = prompt.columns.get("answer")
        return 0.0 if answer is None else float(self.match.matches(text, str(answer)))

    @override
    def demonstrations(self, split: Split, num_examples: int, seed: int) -> Sequence[Messages]:
        rows = [p for p in self.prompts(split) if "response" in p.columns]
        if not rows:
            msg = f"No row of `{self._paths['train']}` ({split}) has a `response` to learn from; add that column."
            raise ConfigError(msg)
        chosen = [rows[i % len(rows)] for i in range(num_examples)]
        return [(*p.messages, _reply(p.columns)) for p in chosen]

    @override
    def demonstration(self, prompt: Prompt) -> str | None:
        return None if "tool_calls" in prompt.columns else super().demonstration(prompt)  # no text: each template's own

    @override
    def demonstration_message(self, prompt: Prompt) -> Message | None:
        return _reply(prompt.columns) if "tool_calls" in prompt.columns else super().demonstration_message(prompt)

    def _read_file(self, path: str) -> list[Prompt]:
        if not Path(path).is_file():
            msg = f"Expected a JSONL file at `{path}`, found none. Check `data.task.init_args.path`."
            raise MissingFileError(msg)
        with Path(path).open("rb") as file:
            prompts = [self._prompt(line, f"{path}:{number}") for number, line in enumerate(file, 1) if line.strip()]
        if not prompts:
            columns = f"`prompt` and `{self.teacher_field}`"
            msg = f"`{path}` has no prompts. Write one JSON object per line, with {columns}."
            raise ConfigError(msg)
        return prompts

    def _prompt(self, line: bytes, place: str) -> Prompt:
        row = _row(line, place)
        messages = _messages(row, place)
        answer = row.get("answer")
        expected = None if answer is None else self.match.expects(str(answer))
        if expected is not None:
            msg = f"{place}: expected {expected} in `answer`, got {answer!r}. Correct the line, or use `match: exact`."
            raise ConfigError(msg)
        teacher = row.get(self.teacher_field)
        if not isinstance(teacher, str):
            msg = (
                f"{place}: expected the teacher's name in `{self.teacher_field}`, got {teacher!r}. "
                f"The line's columns are {sorted(row)}; name another one in `teacher_field`, or add it."
            )
            raise ConfigError(msg)  # the file is wrong, not an argument's type
        domain = teacher
        if self.domain_field is not None:
            if self.domain_field not in row:
                msg = f"{place}: expected `{self.domain_field}`, got the columns {sorted(row)}. Correct `domain_field`."
                raise ConfigError(msg)
            domain = str(row[self.domain_field])
        if messages[-1]["role"] == "assistant":
            if "response" not in row:
                row |= {key: messages[-1][key] for key in ("tool_calls",) if key in messages[-1]}
                row["response"] = messages[-1]["content"]
            messages = messages[:-1]
        columns = {key: value for key, value in row.items() if key not in ("messages", "prompt")}
        return Prompt(messages, question_key(json.dumps(messages, sort_keys=True)), teacher, domain, columns, place)


def _row(line: bytes, place: str) -> dict[str, object]:
    """Return a line's JSON object; a byte-order mark, as some editors write it, is skipped."""
    try:
        row = json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        shown = line.strip()[:60].decode("utf-8", errors="replace")
        msg = f"{place}: expected one JSON object per line (UTF-8), got {shown!r} ({error}). Correct the line."
        raise ConfigError(msg) from None
    if not isinstance(row, dict):
        msg = f"{place}: expected a JSON object, got {type(row).__name__}. Write {{...}} with named columns."
        raise ConfigError(msg)  # the file is wrong, not an argument's type
    return row


def _messages(row: Mapping[str, object], place: str) -> tuple[Mapping[str, object], ...]:
    is_prompt = isinstance(row.get("prompt"), str)
    messages = [{"role": "user", "content": row["prompt"]}] if is_prompt else row.get("messages")
    if not isinstance(messages, list) or not messages:
        needed = "`prompt` (a text) or `messages` (a list of role and content)"
        msg = f"{place}: expected {needed}, got the columns {sorted(row)}. Add one of them."
        raise ConfigError(msg)
    for message in messages:
        optional = {"content"} if isinstance(message, dict) and message.get("tool_calls") else set()
        if not isinstance(message, dict) or not {"role", "content"} - optional <= message.keys():
            msg = f"{place}: every message needs `role` and `content`, got {message!r}."
            raise ConfigError(msg)
        error = message_error(message)
        if error:
            msg = f"{place}: {error}. Correct the line."
            raise ConfigError(msg)
    if messages[0]["role"] == "assistant":
        msg = f"{place}: `messages` must begin with the user or the system, got the assistant first."
        raise ConfigError(msg)
    try:
        chat = with_tools(with_tool_calls(messages), row.get("tools"))
        return with_template_settings(chat, row.get(TEMPLATE_SETTINGS))
    except ConfigError as error:
        msg = f"{place}: {error}"
        raise ConfigError(msg) from None


def _reply(columns: Mapping[str, object]) -> Message:
    """Return a row's demonstration as a message."""
    calls = {"tool_calls": columns["tool_calls"]} if "tool_calls" in columns else {}
    return {"role": "assistant", "content": str(columns["response"]), **calls}
