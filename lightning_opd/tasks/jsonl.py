"""Your own prompts: from a file, a folder, a data set, or a list."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from typing_extensions import override

from lightning_opd.errors import ConfigError
from lightning_opd.interfaces import Split, Task
from lightning_opd.tasks.answers import AnswerReward, ExactAnswer, NumberAnswer, answers_of
from lightning_opd.tasks.rows.builder import PromptBuilder
from lightning_opd.tasks.rows.columns import Columns
from lightning_opd.tasks.rows.prompt_sets import PromptSets
from lightning_opd.tasks.splits import SplitFractions
from lightning_opd.types import Message, Messages, Prompt

MATCHES: Mapping[str, AnswerReward] = {"exact": ExactAnswer(), "numeric": NumberAnswer()}
"""Short names of the two that need no settings."""


class Jsonl(Task):
    """Your own prompts: rows with a `prompt` or `messages`, the teacher's name, and perhaps an `answer`.

    A path names a file (JSONL, one JSON list, Parquet, CSV, each also as .gz), a folder of such files, a folder of
    `save_to_disk`, or a data set of the Hugging Face hub (`org/name`, or `org/name:configuration`). All rows are
    trained on unless `split`, another path, or the names of the folder's files or the data set's splits say otherwise.

    A row's teacher is a name, or several with weights that add up to 1, such as `{"math": 0.7, "code": 0.3}`: it then
    learns from their mixture at every token.

    A row without `answer` has reward 0; distillation needs no answer. Of a list of answers each is right. A row's
    `response` or `completion`, or the assistant's message at the end of its `messages`, is its demonstration, not a
    part of the prompt. A row's `tools` (JSON schemas) are shown by the chat template, and messages may have
    `tool_calls`. Messages, tools and template settings may be JSON texts. The prompt keeps all other columns.

    Args:
        path: Where the rows are, or from Python the rows themselves, as a list of mappings.
        validation_path: Validation prompts.
        test_path: Test prompts.
        columns: Names of your columns, such as `{prompt: question, answer: gold, teacher: subject}`. A `domain` is the
            column under which results are reported, by default the teacher's name; `system` one of system prompts.
        teacher: Teacher of all rows; by default each row names its own.
        system_prompt: System message of all rows that have none of their own.
        split: Fractions that are not trained on, such as `{validation: 0.1, test: 0.3}`, chosen by a hash of the
            question; `hash` stands for these.
        match: How a reply equals the answer: "exact" compares the stripped texts, "numeric" the
            reply's last number; or a class: `ChoiceAnswer` (a letter), `MathAnswer` (mathematics).

    Example:
        >>> rows = [{"question": "4 + 3?", "gold": ["7", "seven"]}]
        >>> task = Jsonl(rows, columns={"prompt": "question", "answer": "gold"}, teacher="math")
        >>> [task.reward(task.prompts("train")[0], text) for text in ("seven", "8")]
        [1.0, 0.0]
    """

    def __init__(
        self,
        path: str | Path | Iterable[Mapping[str, Any]],
        validation_path: str | Path | Iterable[Mapping[str, Any]] | None = None,
        test_path: str | Path | Iterable[Mapping[str, Any]] | None = None,
        columns: Mapping[str, str] | None = None,
        teacher: str | None = None,
        system_prompt: str | None = None,
        split: Literal["hash"] | Mapping[str, float] | None = None,
        match: AnswerReward | Literal["exact", "numeric"] = "exact",
    ) -> None:
        """Check the settings; rows are read and checked at first use, once."""
        known = Columns(columns)
        if teacher is not None and "teacher" in known.mapping:
            msg = f"`teacher` is {teacher!r} for all rows, and `columns` maps it to a column. Leave one of them out."
            raise ConfigError(msg)
        self.match = match if isinstance(match, AnswerReward) else MATCHES[match]
        self._sets = PromptSets(
            {"train": path, "validation": validation_path, "test": test_path},
            None if split is None else SplitFractions.of(split),
            PromptBuilder(known, self.match, teacher, system_prompt),
        )

    @override
    def prompts(self, split: Split) -> Sequence[Prompt]:
        return self._sets.prompts(split)

    @override
    def reward(self, prompt: Prompt, text: str) -> float:
        return float(any(self.match.matches(text, right) for right in answers_of(prompt.columns.get("answer"))))

    @override
    def demonstrations(self, split: Split, num_examples: int, seed: int) -> Sequence[Messages]:
        answered = (prompt for prompt in self._sets.sample(split) if "response" in prompt.columns)
        rows = list(itertools.islice(answered, max(num_examples, 1)))
        if not rows and not self.prompts(split):
            setting = {"validation": "validation_path", "test": "test_path"}.get(split, "path")
            cure = f"Ask for some: `split: {{{split}: 0.1}}`, or name a file in `{setting}`."
            msg = f"There are no rows for `{split}`. {cure}"
            raise ConfigError(msg)
        if not rows:
            msg = (
                f"No row of {self._sets.name(split)} ({split}) has a `response` to learn from; add that column, or "
                "name it: `columns: {response: …}`."
            )
            raise ConfigError(msg)
        chosen = [rows[i % len(rows)] for i in range(num_examples)]
        return [(*p.messages, _reply(p.columns)) for p in chosen]

    @override
    def demonstration(self, prompt: Prompt) -> str | None:
        return None if "tool_calls" in prompt.columns else super().demonstration(prompt)  # no text: each template's own

    @override
    def demonstration_message(self, prompt: Prompt) -> Message | None:
        return _reply(prompt.columns) if "tool_calls" in prompt.columns else super().demonstration_message(prompt)


def _reply(columns: Mapping[str, object]) -> Message:
    """Return a row's demonstration as a message."""
    calls = {"tool_calls": columns["tool_calls"]} if "tool_calls" in columns else {}
    return {"role": "assistant", "content": str(columns["response"]), **calls}
