"""A teacher with a prompt of its own: a hint from the row's other columns, or a system prompt."""

from __future__ import annotations

from collections.abc import Hashable
from string import Formatter
from typing import TYPE_CHECKING

import torch
from jaxtyping import Int
from torch import Tensor
from typing_extensions import override

from lightning_opd.errors import ConfigError
from lightning_opd.interfaces import HasOutputHead, ReadsOwnPrompt, ReadsStudentTokens, TakesTurns, Teacher
from lightning_opd.models import StudentConfig
from lightning_opd.models.shared_base import SharedBases
from lightning_opd.tasks.rows.chats import text_of, with_system
from lightning_opd.teachers.adapters import AdapterTeacher, JoinsBase, attach, tell_student
from lightning_opd.teachers.local import LocalTeacher
from lightning_opd.tokenization.chat import render_prompt
from lightning_opd.types import LinearHead, Message, Messages, Prompt, SampledTokens, Signal, TeacherScores

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from transformers import PreTrainedTokenizerBase


class PrivilegedTeacher(Teacher, ReadsStudentTokens, HasOutputHead, TakesTurns, ReadsOwnPrompt, JoinsBase):
    """Scores the student's tokens after a prompt of its own, for example one with a hint.

    With the student's own weights as the teacher this is self-distillation: the student learns to
    answer without the hint, or the system prompt, as it would with it. `context` replaces the last user message and
    `system_prompt` the system message; the response, with all its turns, keeps its tokens, so the tokenizer must be
    the student's.

    Args:
        teacher: The model that scores.
        context: Text of the last user message, with `{content}` for what the student reads there and
            `{column}` for any other column of the prompt's row.
        system_prompt: Text of the system message, with the same fields; null leaves the student's, if there is one.

    Example:
        >>> teacher = PrivilegedTeacher(LocalTeacher("models/base"), "{content} The answer is {answer}.")
        >>> prompt = Prompt(({"role": "user", "content": "47+38?"},), "key", "self", "math", {"answer": "85"})
        >>> teacher.messages(prompt, prompt.messages)[-1]["content"]
        '47+38? The answer is 85.'
    """

    def __init__(
        self, teacher: LocalTeacher | AdapterTeacher, context: str = "{content}", system_prompt: str | None = None
    ) -> None:
        """Check the templates."""
        self._teacher, self.context, self.system_prompt = teacher, context, system_prompt
        fields, in_system = _fields_of(context), _fields_of(system_prompt or "")
        self._columns = sorted({*fields, *in_system} - {"content"})
        if "content" not in fields:
            msg = f"`context` must hold {{content}}, the message that the student reads; got {context!r}."
            raise ConfigError(msg)

    @property
    @override
    def identity(self) -> Hashable:
        return (type(self), self._teacher.identity, self.context, self.system_prompt)

    @override
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return self._teacher.tokenizer()

    @override
    def set_student(self, student: StudentConfig) -> None:
        tell_student([self._teacher], student)

    @override
    def attach(self, bases: SharedBases) -> None:
        attach([self._teacher], bases)

    @override
    def declared_max_length(self) -> int:
        return self._teacher.declared_max_length()

    @override
    def setup(self, device: torch.device, mesh: DeviceMesh | None = None) -> None:
        self._teacher.setup(device, mesh)

    @override
    def output_head(self) -> LinearHead | None:
        return self._teacher.output_head()

    @override
    def enter_device(self) -> None:
        if isinstance(self._teacher, TakesTurns):
            self._teacher.enter_device()

    @override
    def leave_device(self) -> None:
        if isinstance(self._teacher, TakesTurns):
            self._teacher.leave_device()

    @override
    def close(self) -> None:
        self._teacher.close()

    @override
    def check_prompt(self, prompt: Prompt) -> None:
        self.messages(prompt, prompt.messages)

    @override
    def messages(self, prompt: Prompt, chat: Messages) -> list[Message]:
        """Return the chat that the teacher reads instead of the student's.

        Raises:
            ValueError: The prompt's row lacks a column of the template, or the chat has no user message.
        """
        own: list[Message] = list(chat)
        places = [i for i, message in enumerate(own) if message.get("role") == "user"]
        missing = [name for name in self._columns if name not in prompt.columns]
        if missing or not places:
            needed = f"the columns {missing}" if missing else "a user message"
            msg = (
                f"A PrivilegedTeacher needs {needed}, which the prompt {prompt.place or prompt.key} lacks; its columns "
                f"are {sorted(prompt.columns)}. Add them to the data, or change `context` and `system_prompt`."
            )
            raise ConfigError(msg)
        last = own[places[-1]]
        own[places[-1]] = {**last, "content": self._filled(self.context, prompt, last)}
        if self.system_prompt is not None:
            own = list(with_system(tuple(own), ""))
            own[0] = {**own[0], "content": self._filled(self.system_prompt, prompt, own[0])}
        return own

    @staticmethod
    def _filled(template: str, prompt: Prompt, message: Message) -> str:
        return template.format_map({**prompt.columns, "content": text_of(message) or ""})

    @override
    def score(self, tokens: SampledTokens, signals: frozenset[Signal]) -> TeacherScores:
        if len(tokens) == 0:  # another rank has rows: join its collectives
            return self._teacher.score(tokens, signals)
        tokenizer = self.tokenizer()
        prompts = [
            render_prompt(tokenizer, self.messages(t.prompt, t.turns[0].messages if t.turns else t.prompt.messages))
            for t in tokens.trajectories
        ]
        has_response = tokens.response_mask.any(dim=1)
        starts = torch.where(has_response, tokens.response_mask.long().argmax(dim=1), tokens.token_ids.shape[1])
        lengths = torch.tensor([len(ids) for ids in prompts], device=starts.device)
        ends = torch.where(tokens.attention_mask, torch.arange(tokens.token_ids.shape[1], device=starts.device), -1)
        num_columns = int((ends.amax(dim=1) + 1 - starts).clamp(min=0).add(lengths).max())
        own = tokens.map(lambda x: _moved(x, starts, lengths, num_columns) if x.ndim >= 2 else x)
        for row, ids in enumerate(prompts):
            own.token_ids[row, : len(ids)] = torch.tensor(ids, device=starts.device)
            own.attention_mask[row, : len(ids)] = True
        scores = self._teacher.score(own, signals)

        def back(x: Tensor) -> Tensor:
            return _moved(x, lengths, starts, tokens.token_ids.shape[1])

        return TeacherScores(
            back(scores.logprobs),
            back(scores.aligned_mask),
            None if scores.top_ids is None else back(scores.top_ids),
            None if scores.top_logprobs is None else back(scores.top_logprobs),
            None if scores.hidden_states is None else scores.hidden_states.map(back),
            scores.heads,
            scores.metrics,
        )


def _fields_of(template: str) -> list[str]:
    try:
        return [name for _, name, _, _ in Formatter().parse(template) if name is not None]
    except ValueError as error:
        msg = f"A PrivilegedTeacher cannot read its template {template!r}: {error}. Write a brace as {{{{ or }}}}."
        raise ConfigError(msg) from None


def _moved(x: Tensor, starts: Int[Tensor, " batch"], targets: Int[Tensor, " batch"], num_columns: int) -> Tensor:
    """Return `num_columns` columns in which each row's columns from its start on begin at its target; 0 elsewhere."""
    columns = torch.arange(num_columns, device=x.device)[None]
    sources = columns - targets[:, None] + starts[:, None]
    is_moved = (columns >= targets[:, None]) & (sources < x.shape[1])
    taken = x[torch.arange(len(x), device=x.device)[:, None], sources.clamp(0, x.shape[1] - 1)]
    shape = (*is_moved.shape, *[1] * (x.ndim - 2))
    return torch.where(is_moved.view(shape), taken, torch.zeros((), dtype=x.dtype, device=x.device))
