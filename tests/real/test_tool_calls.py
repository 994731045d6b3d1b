"""Tool calls as real chat templates write them, read back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pytest

from lightning_opd.collection import Learner
from lightning_opd.collection.tool_checks import check_tool_turns
from lightning_opd.errors import ConfigError
from lightning_opd.interfaces import Environment, Task
from lightning_opd.objectives import PolicyGradient
from lightning_opd.tasks.tools import Tool, ToolEnvironment
from lightning_opd.teachers import TeacherPool
from lightning_opd.tokenization.chat import render_answer, render_prompt
from lightning_opd.tokenization.rendering import encode, render
from lightning_opd.tokenization.replies import as_message_call, reply_reader, structure_token_ids
from lightning_opd.tokenization.tool_call_forms import (
    FencedJson,
    MistralCalls,
    PythonicCalls,
    XmlArguments,
    XmlParameters,
)
from lightning_opd.tokenization.tool_calls import BareJson, TaggedJson, ToolCall, ToolCallParser
from lightning_opd.tokenization.tool_schema import typed_arguments
from lightning_opd.tokenization.turn_borders import stop_token_ids
from lightning_opd.types import Prompt, Sampling, Split
from tests.real import fetch
from tests.rollouts.test_tool_episodes import Scripted
from tests.world import run_episodes

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def look_up(city: str, days: int, *, is_exact: bool, tags: list[str]) -> str:
    """Look the weather up.

    Args:
        city: Where.
        days: How many.
        is_exact: Whether to tell all.
        tags: More words.
    """
    return f"{city} {days} {is_exact} {tags}"


TOOL = Tool(look_up, isolated=False)
FAMILIES: Mapping[str, tuple[str, type[ToolCallParser]]] = {  # template or none → tokenizer and form
    "qwen2_5": ("qwen2_5", TaggedJson),
    "qwen3": ("qwen3", TaggedJson),
    "qwen3_instruct_2507": ("qwen3", TaggedJson),
    "qwen3_5_think": ("qwen3", XmlParameters),
    "qwen3_5_nothink": ("qwen3", XmlParameters),
    "nemotron_3_nano": ("qwen3", XmlParameters),
    "glm4moe": ("qwen3", XmlArguments),
    "llama3_1": ("llama3_1", BareJson),
    "llama3_2": ("llama3_2", BareJson),
    "mistral_nemo": ("mistral_nemo", MistralCalls),
    "deepseekv3": ("deepseek_v3", FencedJson),
    "lfm2_2_5": ("qwen3", PythonicCalls),
}
ARGUMENTS: tuple[dict[str, Any], ...] = (
    {"city": "Oslo", "days": 3, "is_exact": True, "tags": []},
    {"city": 'the "old" town\\', "days": -3, "is_exact": False, "tags": ["a, b", "c)", "]"]},
    {"city": "Malmö\nLund {x}", "days": 0, "is_exact": True, "tags": ["ø"]},
)


def tokenizer_of(family: str) -> PreTrainedTokenizerBase:
    tokenizer = fetch.tokenizer(FAMILIES[family][0])
    tokenizer.chat_template = fetch.chat_templates().get(family, tokenizer.chat_template)
    return tokenizer


def replied(tokenizer: PreTrainedTokenizerBase, content: str, *arguments: dict[str, Any]) -> tuple[str, str]:
    """Return the end of the prompt, and the reply in which a template writes the calls, its closing tokens cut off."""
    calls = [as_message_call(ToolCall("look_up", one), i) for i, one in enumerate(arguments)]
    chat = [{"role": "user", "content": "What about it?", "tools": (TOOL.schema,)}]
    prompt = render(tokenizer, chat, add_generation_prompt=True)
    reply = {"role": "assistant", "content": content, "tool_calls": calls}
    whole = render(tokenizer, [*chat, reply], add_generation_prompt=False)
    text = whole[len(prompt) :] if whole.startswith(prompt) else whole.rpartition("What about it?")[2]
    closers = ("<|im_end|>", "<|eot_id|>", "</s>", "<｜end▁of▁sentence｜>")  # noqa: RUF001  # DeepSeek's own
    for closer in closers:
        text = text.partition(closer)[0] if not text.startswith(closer) else text
    return prompt if whole.startswith(prompt) else "", text


@pytest.mark.parametrize("family", FAMILIES)
def test_calls_that_a_real_template_writes_are_read_back(family: str) -> None:
    tokenizer = tokenizer_of(family)
    reader = reply_reader(tokenizer)
    assert isinstance(reader.parser, FAMILIES[family][1])
    assert reader.is_known
    assert reader.shows_calls
    several = (ARGUMENTS,) if reader.takes_several else ()
    for arguments in (*((one,) for one in ARGUMENTS), *several):
        if isinstance(reader.parser, PythonicCalls) and arguments != ARGUMENTS[:1]:
            continue  # this template escapes nothing
        prompt, text = replied(tokenizer, "", *arguments)
        calls = reader.calls(text, prompt)
        assert [call and (call.name, typed_arguments(TOOL.schema, call)) for call in calls] == [
            ("look_up", one) for one in arguments
        ], text


@pytest.mark.parametrize("family", FAMILIES)
def test_a_real_template_shows_a_whole_tool_turn(family: str) -> None:
    tokenizer = tokenizer_of(family)
    environment = ToolEnvironment(({"role": "user", "content": "What about it?"},), [TOOL], lambda _: 0.0)
    messages = environment.reset()
    _, text = replied(tokenizer, "", ARGUMENTS[0])
    reply = environment.read(text, "", tokenizer)
    answer = environment.step(reply)
    between = tokenizer.decode(render_answer(tokenizer, messages, answer, None, reply))
    assert "Oslo 3 True []" in between
    prompt = tokenizer.decode(render_prompt(tokenizer, messages))
    assert ("look_up" in prompt) == (family != "deepseekv3"), "which shows calls, but no tools"


@pytest.mark.parametrize("num_calls", [1, 2])
@pytest.mark.parametrize("family", ["qwen2_5", "qwen3_instruct_2507", "qwen3_5_nothink", "llama3_1", "mistral_nemo"])
def test_a_real_episode_with_calls_has_the_tokens_of_its_whole_chat(family: str, num_calls: int) -> None:
    tokenizer = tokenizer_of(family)
    if num_calls > 1 and not reply_reader(tokenizer).takes_several:
        pytest.skip("the template takes one call at a time")
    stops = stop_token_ids(tokenizer)
    _, text = replied(tokenizer, "", *ARGUMENTS[:num_calls])
    engine = Scripted([[*encode(tokenizer, said), stops[0]] for said in (text, "It is warm.")])
    sampling, task = Sampling(max_new_tokens=300, stop_token_ids=stops), LookUp()
    [trajectory] = run_episodes(task, task.prompts("train"), engine, tokenizer, [0], sampling, 10_000)
    assert len(trajectory.turns) == 2
    before = trajectory.token_ids[: trajectory.turns[1].start]
    whole = render(tokenizer, trajectory.turns[1].messages, add_generation_prompt=True)
    assert list(before) == encode(tokenizer, whole)


class LookUp(Task):
    """Questions for a student that may look something up."""

    def prompts(self, split: Split) -> Sequence[Prompt]:
        return [Prompt(({"role": "user", "content": "What about it?"},), "0", "math", "math")]

    def environment(self, prompt: Prompt) -> Environment:
        return ToolEnvironment(prompt.messages, [TOOL], lambda _: 0.0)


REFUSED = {
    "deepseekv3": ("deepseek_v3", r"does not show the tools \['look_up'\]"),
    "gemma": ("gemma2", "refuses a turn with tools"),
    "gemma3": ("gemma3", "refuses a turn with tools"),
    "llama3": ("llama3_1", r"does not show the tools \['look_up'\]"),
    "phi3": ("qwen3", r"does not show the tools \['look_up'\]"),
    "gptoss": ("qwen3", "in a form that is not known"),
}


@pytest.mark.parametrize("template", [*FAMILIES, *REFUSED])
def test_a_real_template_takes_a_tool_turn_or_is_refused_at_setup(template: str) -> None:
    tokenizer = fetch.tokenizer((FAMILIES.get(template) or REFUSED[template])[0])
    tokenizer.chat_template = fetch.chat_templates().get(template, tokenizer.chat_template)

    def nothing(*_: Any) -> Any:
        pytest.fail("nothing is loaded for a check")

    learner = Learner(tokenizer, (0,), 512, nothing, nothing, nothing, TeacherPool({}), PolicyGradient())
    if template in REFUSED:
        with pytest.raises(ConfigError, match=REFUSED[template][1]):
            check_tool_turns(LookUp(), LookUp().prompts("train"), learner)
    else:
        check_tool_turns(LookUp(), LookUp().prompts("train"), learner)


@pytest.mark.parametrize("family", ["qwen3", "glm4moe", "qwen3_5_think"])
def test_what_a_real_model_only_considers_is_no_call(family: str) -> None:
    tokenizer = tokenizer_of(family)
    reader = reply_reader(tokenizer)
    _, text = replied(tokenizer, "", ARGUMENTS[0])
    call = text.rpartition("</think>")[2].strip()
    assert len(reader.calls(f"<think>\n{call}\n</think>\n\n{call}")) == 1
    assert reader.calls(f"<think>\n{call}\n</think>\n\nNo.") == []
    assert reader.calls(f"{call}\n</think>\n\nNo.", "<|im_start|>assistant\n<think>\n") == []


def test_line_breaks_of_gemma_are_text_and_its_turns_are_not() -> None:
    tokenizer = fetch.tokenizer("gemma3")
    texts = set(tokenizer.convert_ids_to_tokens(structure_token_ids(tokenizer)))
    assert {"<start_of_turn>", "<end_of_turn>", "<eos>"} <= texts
    assert not any(not text.strip("\n\t ▁") for text in texts)
    assert len(tokenizer.get_added_vocab()) > len(texts) + 1000, "all added tokens were masked before"
