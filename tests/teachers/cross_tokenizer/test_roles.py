from __future__ import annotations

import copy
import itertools

import pytest
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast

from lightning_opd.teachers.cross_tokenizer.roles import control_tokens, role_table, turn_ends
from lightning_opd.tokenization.tool_call_forms import XmlArguments, XmlParameters
from lightning_opd.tokenization.tool_calls import TaggedJson
from tests.teachers.cross_tokenizer.families import CONTROL, END_OF_TURN, FAMILIES, STOP, TEMPLATES, family
from tests.tokenization.test_replies import CALLS


def token_id(name: str, token: str) -> int:
    return int(family(name).get_vocab()[token])


def counterparts(student: str, teacher: str, **settings: str | None) -> dict[str, str]:
    overrides = settings or None
    table = role_table(family(student), family(teacher), overrides)
    ours, theirs = (family(name).convert_ids_to_tokens for name in (student, teacher))
    return {str(ours(own)): str(theirs(other)) for own, other in table.pairs.items()}


@pytest.mark.parametrize(("student", "teacher"), list(itertools.permutations(FAMILIES, 2)))
def test_the_end_of_a_turn_becomes_the_teachers(student: str, teacher: str) -> None:
    pairs = counterparts(student, teacher)
    for token in {STOP[student], END_OF_TURN[student]}:
        assert pairs[token] == END_OF_TURN[teacher]


@pytest.mark.parametrize("name", FAMILIES)
def test_one_tokenizer_maps_every_control_token_to_itself(name: str) -> None:
    assert counterparts(name, name) == {token: token for token in CONTROL[name]}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_turn_ends_as_the_template_closes_it_and_with_the_stop_token(name: str) -> None:
    expected = dict.fromkeys([END_OF_TURN[name], STOP[name]])
    assert turn_ends(family(name)) == [token_id(name, token) for token in expected]


def test_roles_are_found_by_their_spellings() -> None:
    assert counterparts("chatml", "deepseek") == {"<|im_end|>": "<|eos|>", "<think>": "<think>", "</think>": "</think>"}
    assert "<think>" not in counterparts("chatml", "llama3")


def test_tool_calls_of_different_formats_are_no_counterparts() -> None:
    """After `<tool_call>` stands a JSON object, after `[TOOL_CALLS]` a list."""
    assert "<tool_call>" not in counterparts("chatml", "mistral")
    assert "[TOOL_CALLS]" not in counterparts("mistral", "chatml")


OLD_MISTRAL = '[TOOL_CALLS][{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments|tojson }}}]'
NEW_MISTRAL = "[TOOL_CALLS]{{ c.function.name }}[ARGS]{{ c.function.arguments|tojson }}"
HERMES, SPACED = CALLS[TaggedJson], "<tool_call>\n{{ c.function|tojson }}\n</tool_call>"
UNKNOWN = "<tool_call>run {{ c.function.name }}</tool_call>"
TAGS, NOTHING = {"<tool_call>", "</tool_call>"}, set[str]()


def calling(call: str, name: str = "chatml") -> PreTrainedTokenizerFast:
    """Return a family's tokenizer whose template writes calls in some form."""
    tokenizer = copy.copy(family(name))
    calls = f"{{% for c in m.tool_calls or [] %}}{call}{{% endfor %}}"
    before, after = (
        TEMPLATES[name].split("<|im_end|>", 1) if name == "chatml" else TEMPLATES[name].split(" + '</s>'", 1)
    )
    closer = "' }}" + calls + "{{ '<|im_end|>" if name == "chatml" else " }}" + calls + "{{ '</s>'"
    tokenizer.chat_template = before + closer + after
    return tokenizer


@pytest.mark.parametrize(
    ("student", "teacher", "paired"),
    [
        (calling(HERMES), calling(SPACED), TAGS),
        (calling(HERMES), calling(CALLS[XmlParameters]), NOTHING),
        (calling(CALLS[XmlArguments]), calling(HERMES), NOTHING),
        (calling(CALLS[XmlArguments]), calling(CALLS[XmlParameters]), NOTHING),
        (calling(CALLS[XmlParameters]), calling(CALLS[XmlParameters] + "\n"), TAGS),
        (family("chatml"), calling(HERMES), TAGS),
        (family("chatml"), calling(CALLS[XmlParameters]), NOTHING),
        (calling(UNKNOWN), calling(UNKNOWN), TAGS),
        (calling(UNKNOWN), calling(HERMES), NOTHING),
        (calling(UNKNOWN), calling(UNKNOWN.replace("run", "do")), NOTHING),
        (calling(OLD_MISTRAL, "mistral"), calling(OLD_MISTRAL + " ", "mistral"), {"[TOOL_CALLS]"}),
        (calling(OLD_MISTRAL, "mistral"), calling(NEW_MISTRAL, "mistral"), NOTHING),
    ],
)
def test_calls_are_counterparts_where_both_templates_write_them_alike(
    student: PreTrainedTokenizerFast, teacher: PreTrainedTokenizerFast, paired: set[str]
) -> None:
    table = role_table(student, teacher)
    names = {str(student.convert_ids_to_tokens(own)) for own in table.pairs}
    assert names & {*TAGS, "[TOOL_CALLS]"} == paired
    assert str(student.eos_token) in names
    assert ("<think>" in names) == (student.eos_token == STOP["chatml"]), "other tokens stay pairs"


def test_calls_of_other_formats_are_paired_where_it_is_asked_for() -> None:
    student, teacher = calling(HERMES), calling(CALLS[XmlParameters])
    own = student.get_vocab()["<tool_call>"]
    assert own not in role_table(student, teacher).pairs
    assert role_table(student, teacher, {"<tool_call>": "<tool_call>"}).pairs[own] == teacher.get_vocab()["<tool_call>"]


def test_what_is_given_comes_first() -> None:
    pairs = counterparts("chatml", "deepseek", **{"<tool_call>": "<think>", "<think>": None, "<|im_end|>": "<|User|>"})
    assert pairs == {"<tool_call>": "<think>", "</think>": "</think>", "<|im_end|>": "<|User|>"}


@pytest.mark.parametrize(("ours", "theirs"), [("<reflect>", "<think>"), ("<think>", "<reflect>")])
def test_a_given_token_must_exist(ours: str, theirs: str) -> None:
    with pytest.raises(ValueError, match="`roles` names `<reflect>`, which is not one token"):
        role_table(family("chatml"), family("deepseek"), {ours: theirs})


def test_known_roles_are_control_tokens_even_where_they_are_not_marked_special() -> None:
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=family("llama3").backend_tokenizer.from_str(family("llama3").backend_tokenizer.to_str())
    )
    tokenizer.add_tokens([AddedToken("<tool_call>", special=False), AddedToken("<table>", special=False)])
    assert "<tool_call>" in control_tokens(tokenizer)
    assert "<table>" not in control_tokens(tokenizer)
