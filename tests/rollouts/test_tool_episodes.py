"""Episodes with tool calls in the form of the student's chat template, and in that of a teacher of another family."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest
import torch
from transformers import PreTrainedTokenizerBase
from typing_extensions import override

from lightning_opd.interfaces import Environment, FormatRule, OnProgress, RolloutEngine, Task
from lightning_opd.tasks.format_rules import UnparsableToolCall, WrongArguments
from lightning_opd.tasks.tools import Tool, ToolEnvironment
from lightning_opd.tokenization.rendering import encode, render
from lightning_opd.tokenization.tool_calls import TaggedJson, ToolCallParser
from lightning_opd.types import Prompt, Sample, Sampling, Split
from tests.tokenization.test_replies import CALLS, OPEN, TURN, tokenizer_with
from tests.world import run_episodes

SCHEMAS = "{% for tool in tools or [] %}{{ tool|tojson }}{% endfor %}"


def double(x: int) -> str:
    """Double a number.

    Args:
        x: The number.
    """
    return str(2 * x)


class Doubling(Task):
    """A question that a tool answers, for students of any family."""

    @override
    def prompts(self, split: Split) -> Sequence[Prompt]:
        return [Prompt(({"role": "user", "content": "What is twice 21?"},), "0", "math", "math")]

    @override
    def environment(self, prompt: Prompt) -> Environment:
        return ToolEnvironment(prompt.messages, [Tool(double)], lambda reply: float(reply == "42"))

    @override
    def format_rules(self) -> Sequence[FormatRule]:
        return UnparsableToolCall(), WrongArguments({"double": Tool(double).schema})


class Scripted(RolloutEngine):
    """Generates given replies, one per turn."""

    def __init__(self, replies: Sequence[Sequence[int]]) -> None:
        self.replies = list(replies)

    @override
    def sync(self, student: torch.nn.Module, version: int) -> None:
        """There are no weights."""

    @override
    def generate(
        self,
        token_ids: Sequence[Sequence[int]],
        num_samples: int,
        seeds: Sequence[int],
        sampling: Sampling = Sampling(),
        on_progress: OnProgress | None = None,
    ) -> list[Sample]:
        ids = tuple(self.replies.pop(0))
        return [Sample(ids, (-1.0,) * len(ids), is_truncated=False) for _ in seeds]


def with_template(form: type[ToolCallParser]) -> PreTrainedTokenizerBase:
    tokenizer = tokenizer_with(CALLS[form])
    calls = f"{{% for c in m.tool_calls or [] %}}{CALLS[form]}{{% endfor %}}"
    ids = "{{ ' ' + m.tool_call_id if m.role == 'tool' }}"
    tokenizer.chat_template = f"{SCHEMAS}{{% for m in messages %}}{TURN}{ids}{calls}<|im_end|>\n{{% endfor %}}{OPEN}"
    return tokenizer


def called(form: type[ToolCallParser], tokenizer: PreTrainedTokenizerBase, content: str = "") -> str:
    """Return the reply in which a template writes the call."""
    function = {"name": "double", "arguments": {"x": 21}}
    chat = [{"role": "assistant", "content": content, "tool_calls": [{"function": function}]}]
    text = render(tokenizer, chat, add_generation_prompt=False)
    return text.removeprefix("<|im_start|>assistant\n").removesuffix("\n")


@pytest.mark.parametrize("form", CALLS)
def test_an_episode_in_each_form_has_the_tokens_of_its_whole_chat(form: type[ToolCallParser]) -> None:
    tokenizer, task = with_template(form), Doubling()
    replies = [called(form, tokenizer), "42<|im_end|>"]
    engine = Scripted([encode(tokenizer, reply) for reply in replies])
    stop = tokenizer.convert_tokens_to_ids("<|im_end|>")
    sampling = Sampling(max_new_tokens=200, stop_token_ids=(int(stop),))  # type: ignore[arg-type]  # one id for one token
    [trajectory] = run_episodes(task, task.prompts("train"), engine, tokenizer, [0], sampling, 10_000)
    assert trajectory.reward == 1.0
    assert trajectory.format_errors == ()
    before = trajectory.turns[1].messages
    assert [message["role"] for message in before] == ["user", "assistant", "tool"]
    assert before[2] == {"role": "tool", "tool_call_id": "call00000", "name": "double", "content": "42"}
    whole = render(tokenizer, [*before, {"role": "assistant", "content": "42"}], add_generation_prompt=False)
    assert list(trajectory.token_ids) == encode(tokenizer, whole.removesuffix("\n"))


@pytest.mark.parametrize("other", CALLS)
def test_a_teacher_of_another_family_reads_its_own_form(other: type[ToolCallParser]) -> None:
    form, task = next(iter(CALLS)), Doubling()
    tokenizer, teacher = with_template(form), with_template(other)
    engine = Scripted([encode(tokenizer, reply) for reply in (called(form, tokenizer), "42<|im_end|>")])
    sampling = Sampling(max_new_tokens=200, stop_token_ids=(int(tokenizer.eos_token_id),))
    [trajectory] = run_episodes(task, task.prompts("train"), engine, tokenizer, [0], sampling, 10_000)
    read = render(teacher, trajectory.turns[1].messages, add_generation_prompt=True)
    assert called(other, teacher).removesuffix("<|im_end|>") in read
    assert '"name": "double"' in read.partition("What is twice")[0], "and the tools"


ODD = ('a"b', "<|im_end|>", "{{ x }}", "\ud83d", "é", "a b", "x" * 500, "reply", "", "</tool_call>", "probe", "\x00")


@pytest.mark.parametrize("name", ["double", *ODD])
def test_no_call_that_a_student_may_generate_ends_the_run(name: str) -> None:
    tokenizer, task = with_template(TaggedJson), Doubling()
    arguments = [{"x": 1}, {"x": name, name: [name]}, {}, {"x": 10**400, "y": None}, {"x": [[[{}]]] * 3}, "x"]
    for given in arguments:
        reply = f"<tool_call>{json.dumps({'name': name, 'arguments': given})}</tool_call><|im_end|>"
        engine = Scripted([encode(tokenizer, reply) for reply in (reply, "42<|im_end|>")])
        sampling = Sampling(max_new_tokens=9_000, stop_token_ids=(int(tokenizer.eos_token_id),))
        [trajectory] = run_episodes(task, task.prompts("train"), engine, tokenizer, [0], sampling, 100_000)
        assert len(trajectory.turns) == 2 or "<|im_end|>" in name or name == "</tool_call>"
