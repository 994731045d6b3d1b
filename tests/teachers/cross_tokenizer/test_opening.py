from __future__ import annotations

import copy
from contextlib import nullcontext
from typing import TYPE_CHECKING

import pytest

from lightning_opd.errors import ConfigError
from lightning_opd.teachers import CrossTokenizerTeacher
from lightning_opd.teachers.cross_tokenizer.prefix_tree import prefix_tree
from lightning_opd.teachers.cross_tokenizer.translation import Translator
from lightning_opd.types import TEMPLATE_SETTINGS, Prompt
from tests.teachers.cross_tokenizer.families import TEMPLATES, family

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

EMPTY_THOUGHT = TEMPLATES["chatml"].replace(
    "m['role'] + '\\n' +", "m['role'] + '\\n' + ('<think>\\n\\n</think>\\n\\n' if m['role'] == 'assistant' else '') +"
)
"""Shows an empty thought before a reply, but not in the generation prompt, as Qwen 3 does."""

OPENED_THOUGHT = TEMPLATES["chatml"].replace("<|im_start|>assistant\\n", "<|im_start|>assistant\\n<think>\\n")
"""Opens a thought in the generation prompt, as DeepSeek R1 does."""


def chatml(template: str) -> PreTrainedTokenizerFast:
    tokenizer = copy.copy(family("chatml"))
    tokenizer.chat_template = template
    return tokenizer


def shown(both: Translator, token_ids: list[int]) -> tuple[list[str], list[int]]:
    """Return the teacher's tokens of a reply, and the student's that are aligned; a tree must read the same."""
    translation = both.reply(token_ids)
    tree = prefix_tree(both, token_ids)
    node, path = max(range(len(tree.token_ids)), key=lambda n: n), list[int]()
    while node > 0:
        path.insert(0, tree.token_ids[node])
        node = tree.parents[node]
    assert path == translation.token_ids
    aligned = [i for ours, _ in translation.alignment.spans for i in ours]
    return list(both.teacher.convert_ids_to_tokens(translation.token_ids)), aligned


@pytest.mark.parametrize("student", ["llama3", "mistral", "deepseek"])
def test_the_lead_of_a_reply_is_prompt_in_single_control_tokens(student: str) -> None:
    teacher = chatml(EMPTY_THOUGHT)
    both = Translator(family(student), teacher)
    stop = int(family(student).eos_token_id)
    token_ids = [*both.student_spelling.encode(b"name"), stop]
    tokens, aligned = shown(both, token_ids)
    chat = [{"role": "user", "content": "?"}]
    native = teacher.apply_chat_template([*chat, {"role": "assistant", "content": "name"}], tokenize=False)
    assert both.prompt(chat) + both.reply(token_ids).token_ids == teacher.encode(str(native).rstrip("\n"))
    assert tokens[0] == "<think>"
    assert aligned == list(range(len(token_ids)))
    assert both.reply(token_ids).response_mask[0] is False


def test_a_row_whose_settings_change_the_beginning_of_a_reply_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    thinker = chatml(TEMPLATES["chatml"] + "{% if add_generation_prompt and think %}{{ '<think>\n' }}{% endif %}")
    dated = chatml("{% if date %}{{ date }}{% endif %}" + TEMPLATES["chatml"])
    teacher = CrossTokenizerTeacher("models/thinker")

    def row(**settings: object) -> Prompt:
        return Prompt(({"role": "user", "content": "?", TEMPLATE_SETTINGS: settings},), "row 7", "t", "t")

    for both, settings, is_refused in (
        (Translator(family("llama3"), thinker), {"think": True}, True),
        (Translator(family("llama3"), thinker), {"think": False}, False),
        (Translator(family("llama3"), dated), {"date": "today"}, False),
        (Translator(thinker, thinker), {"think": True}, False),
    ):
        teacher = CrossTokenizerTeacher("models/thinker")
        monkeypatch.setattr(teacher, "_translator", both)
        teacher.check_prompt(row())
        with pytest.raises(ConfigError, match=r"row 7 has.*begins otherwise") if is_refused else nullcontext():
            teacher.check_prompt(row(**settings))


def test_a_reply_that_thinks_takes_the_place_of_the_empty_thought() -> None:
    both, vocabulary = Translator(family("deepseek"), chatml(EMPTY_THOUGHT)), family("deepseek").get_vocab()
    token_ids = [vocabulary["<think>"], *both.student_spelling.encode(b"a"), vocabulary["</think>"]]
    tokens, aligned = shown(both, token_ids)
    assert tokens == ["<think>", "a", "</think>"]
    assert aligned == [0, 1, 2]
    typed = Translator(family("llama3"), chatml(EMPTY_THOUGHT))
    tokens, _ = shown(typed, typed.student_spelling.encode(b"<think>a"))
    assert "</think>" not in tokens, "a student without such a token thinks in plain text"


def test_a_thought_that_the_teachers_prompt_has_opened_is_not_opened_again() -> None:
    both, vocabulary = Translator(family("deepseek"), chatml(OPENED_THOUGHT)), family("deepseek").get_vocab()
    token_ids = [vocabulary["<think>"], *both.student_spelling.encode(b"\na"), vocabulary["</think>"]]
    assert both.teacher.convert_ids_to_tokens(both.prompt([{"role": "user", "content": "?"}]))[-2] == "<think>"
    tokens, aligned = shown(both, token_ids)
    assert tokens == ["a", "</think>"]
    assert aligned == list(range(len(token_ids)))[-2:], "what the prompt already says is not scored"
    assert shown(both, both.student_spelling.encode(b"a"))[0] == ["a"]


def test_a_thought_that_the_students_prompt_has_opened_is_opened_for_the_teacher() -> None:
    both, vocabulary = Translator(chatml(OPENED_THOUGHT), family("deepseek")), family("chatml").get_vocab()
    tokens, aligned = shown(both, [*both.student_spelling.encode(b"a"), vocabulary["</think>"]])
    assert tokens[0] == "<think>"
    assert tokens[-2:] == ["a", "</think>"]
    assert aligned == [0, 1]


def test_whatever_stops_the_student_ends_the_teachers_turn() -> None:
    student, teacher = family("llama3"), family("chatml")
    extra = student.get_vocab()["<|end_header_id|>"]
    letter = student.get_vocab()["x"]
    both = Translator(student, teacher, stop_token_ids=[extra, letter])
    end = teacher.get_vocab()["<|im_end|>"]
    for stop in (extra, letter, *(student.get_vocab()[token] for token in ("<|eot_id|>", "<|end_of_text|>"))):
        translation = both.reply([*both.student_spelling.encode(b"a"), stop])
        assert translation.token_ids[-1] == end
        assert translation.alignment.strict[-1][0] == 1
