from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerBase

from lightning_opd.errors import ConfigError
from lightning_opd.models import StudentConfig, load_tokenizer
from lightning_opd.modules import OPDModule
from lightning_opd.teachers import LocalTeacher
from lightning_opd.tokenization.chat import render_answer, render_prompt
from lightning_opd.tokenization.rendering import encode, render
from lightning_opd.types import Message
from tests.tokenization.templates import TEMPLATES, tokenizer_with

USER: Message = {"role": "user", "content": "What is 27 + 48?"}


def text_of(tokenizer: PreTrainedTokenizerBase, *messages: Message) -> str:
    return str(tokenizer.decode(render_prompt(tokenizer, messages)))


@pytest.mark.parametrize("template", ["ChatML", "parts"])
@pytest.mark.parametrize(
    ("content", "shown"),
    [
        (None, ""),
        ([{"type": "text", "text": "27 "}, {"type": "text", "text": "+ 48"}], "27 + 48"),
        ([], ""),
        ("27 + 48", "27 + 48"),
    ],
)
def test_content_is_rendered_in_every_form(template: str, content: object, shown: str) -> None:
    expected = f"<|im_start|>user\n{shown}<|im_end|>\n<|im_start|>assistant\n"
    assert text_of(tokenizer_with(template), {"role": "user", "content": content}) == expected


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (7, "got int"),
        ({"text": "a"}, "got dict"),
        ([{"type": "image", "url": "x"}], "a part of type 'image'"),
        (["a"], "a part of type 'str'"),
    ],
)
def test_content_that_templates_cannot_show_is_refused(content: object, message: str) -> None:
    with pytest.raises(ConfigError, match=rf"role `user` cannot be rendered.*{message}"):
        text_of(tokenizer_with("ChatML"), {"role": "user", "content": content})


@pytest.mark.parametrize("template", ["ChatML", "pastes arguments"])
@pytest.mark.parametrize("arguments", [{"x": "é"}, '{"x": "é"}'])
def test_arguments_are_encoded_once(template: str, arguments: object) -> None:
    call: Message = {"id": "call00001", "type": "function", "function": {"name": "calc", "arguments": arguments}}
    shown = text_of(tokenizer_with(template), USER, {"role": "assistant", "content": None, "tool_calls": [call]})
    inner = shown.split("<tool_call>")[1].split("</tool_call>")[0]
    encoded = inner.removeprefix("calc ") if template == "pastes arguments" else inner.split('"arguments": ')[1][:-1]
    assert json.loads(encoded) == {"x": "é"}


def test_arguments_that_are_no_json_are_refused() -> None:
    call = {"id": "call00001", "type": "function", "function": {"name": "calc", "arguments": "{x: 1"}}
    with pytest.raises(ConfigError, match=r"`arguments` of a tool call must be a mapping or JSON"):
        text_of(tokenizer_with("ChatML"), USER, {"role": "assistant", "content": "", "tool_calls": [call]})


def test_a_template_that_refuses_a_chat_is_named_with_its_words() -> None:
    with pytest.raises(ConfigError, match=r"refuses messages of roles \['user', 'user'\]: Roles must alternate"):
        text_of(tokenizer_with("alternates"), USER, USER)


def test_today_is_always_the_same_day() -> None:
    assert text_of(tokenizer_with("date"), USER).startswith("Today is 26 Jul 2024.")


@pytest.mark.parametrize("role", ["user", "tool"])
@pytest.mark.parametrize("spelled", ["<|im_end|>", "<think>", "a<|im_start|>b</tool_call>", "<|im_<|im_end|>end|>"])
def test_a_control_token_in_data_is_only_text(role: str, spelled: str) -> None:
    tokenizer = tokenizer_with("strips thoughts")
    ids = encode(
        tokenizer, render(tokenizer, [{"role": role, "content": f"x {spelled} y"}], add_generation_prompt=False)
    )
    assert tokenizer.decode(ids) == f"<|im_start|>{role}\nx {spelled} y<|im_end|>\n"
    control = tokenizer.get_added_vocab().values()
    assert [i for i in ids if i in control] == tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])


@pytest.mark.parametrize("after", ["\n", "\n\n", "\n  y", " \ny", "a", "0", "."])
def test_what_follows_a_spelled_control_token_is_whole(after: str) -> None:
    tokenizer = tokenizer_with("ChatML")
    merging = copy.deepcopy(tokenizer)
    merging.add_tokens(
        [AddedToken(token, normalized=False) for token in ("\n\n", "\n\n\n")]
    )  # as most tokenizers merge them
    content = f"x <|im_end|>{after}"
    for own in (tokenizer, merging):
        ids = encode(own, render(own, [{"role": "user", "content": content}], add_generation_prompt=False))
        assert own.decode(ids) == f"<|im_start|>user\n{content}<|im_end|>\n"


def test_every_form_of_the_time_is_fixed() -> None:
    template = "{{ strftime_now('%-d %B %Y, %H:%M:%S %p %Z %j %e %F %T') }}"
    tokenizer = copy.deepcopy(tokenizer_with("ChatML"))
    tokenizer.chat_template = template
    assert text_of(tokenizer, USER) == "26 July 2024, 12:00:00 PM UTC 208 26 2024-07-26 12:00:00"


def test_an_assistants_control_tokens_stay() -> None:
    tokenizer = tokenizer_with("ChatML")
    ids = render_prompt(tokenizer, [USER, {"role": "assistant", "content": "<think>x</think>"}, USER])
    assert tokenizer.convert_tokens_to_ids("<think>") in ids


def changed(folder: Path, **settings: Any) -> PreTrainedTokenizerBase:
    return OPDModule(StudentConfig(str(folder), **settings), teachers={}).tokenizer


def test_control_tokens_in_data_can_be_refused_or_kept(tiny_model_dir: Path) -> None:
    chat: list[Message] = [{"role": "user", "content": "a<|im_end|>"}]
    refusing = changed(tiny_model_dir, control_tokens_in_text="refuse")
    with pytest.raises(ConfigError, match=r"role `user` spells out the control token `<\|im_end\|>`"):
        render_prompt(refusing, chat)
    kept = render_prompt(changed(tiny_model_dir, control_tokens_in_text="keep"), chat)
    assert kept.count(refusing.eos_token_id) == 2
    assert render_prompt(changed(tiny_model_dir), chat).count(refusing.eos_token_id) == 1


def test_a_tools_answer_is_data_too() -> None:
    tokenizer = tokenizer_with("ChatML")
    ids = render_answer(tokenizer, [USER], [{"role": "tool", "content": "<|im_end|>"}])
    assert ids.count(tokenizer.get_vocab()["<|im_end|>"]) == 1


@pytest.fixture
def thinker(tiny_model_dir: Path, tmp_path: Path) -> Path:
    """A model whose template knows `enable_thinking`."""
    folder = tmp_path / "thinker"
    folder.mkdir()
    for path in tiny_model_dir.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "chat_template.jinja").write_text(TEMPLATES["strips thoughts"], encoding="utf-8")
    return folder


def test_template_settings_are_the_runs_the_teachers_and_the_rows(thinker: Path, tmp_path: Path) -> None:
    off: dict[str, object] = {"enable_thinking": False}
    plain, silent = changed(thinker), changed(thinker, chat_template_kwargs=off)
    assert text_of(silent, USER) == text_of(plain, USER) + "<think>\n\n</think>\n\n"
    teacher = LocalTeacher(str(thinker), chat_template_kwargs=off)
    assert text_of(teacher.tokenizer(), USER) == text_of(silent, USER)
    assert teacher.identity != LocalTeacher(str(thinker)).identity
    row = {**USER, "chat_template_kwargs": {"enable_thinking": True}}
    assert text_of(silent, row) == text_of(plain, USER)
    silent.save_pretrained(tmp_path / "export")
    assert text_of(load_tokenizer(str(tmp_path / "export")), USER) == text_of(silent, USER)
