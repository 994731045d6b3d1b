from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from lightning_opd.models import load_tokenizer
from lightning_opd.tokenization.chat import decode_response, render_demonstration, render_prompt, stop_token_ids
from lightning_opd.tokenization.training import train_tokenizer
from tests.tiny import SPECIAL_TOKENS, TEXTS

pieces = st.one_of(st.text(max_size=20), st.sampled_from([*SPECIAL_TOKENS, "<|im_end|>", "<|im_start|>", "27 + 48"]))
contents = st.lists(pieces, max_size=4).map("".join)
messages = st.builds(
    lambda role, content: {"role": role, "content": content}, st.sampled_from(["system", "user", "assistant"]), contents
)
chats = st.lists(messages, min_size=1, max_size=4)


@cache
def tokenizer() -> PreTrainedTokenizerBase:
    return train_tokenizer(TEXTS, vocab_size=288, special_tokens=SPECIAL_TOKENS)


@given(chats, contents)
def test_a_demonstration_begins_with_exactly_the_prompts_tokens(chat: list[dict[str, str]], reply: str) -> None:
    prompt = render_prompt(tokenizer(), chat)
    token_ids, mask = render_demonstration(tokenizer(), [*chat, {"role": "assistant", "content": reply}])
    assert token_ids[: len(prompt)] == prompt
    assert mask == [False] * len(prompt) + [True] * (len(token_ids) - len(prompt))
    assert token_ids[-1] == tokenizer().eos_token_id


@given(chats, contents)
def test_the_learned_tokens_decode_to_the_reply(chat: list[dict[str, str]], reply: str) -> None:
    token_ids, mask = render_demonstration(tokenizer(), [*chat, {"role": "assistant", "content": reply}])
    learned = [token for token, counts in zip(token_ids, mask, strict=True) if counts]
    assert decode_response(tokenizer(), learned, stop_token_ids(tokenizer())) == reply


def test_the_prompt_opens_the_assistants_turn() -> None:
    text = tokenizer().decode(render_prompt(tokenizer(), [{"role": "user", "content": "Hi"}]))
    assert text == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"


def test_tags_stay_visible_and_only_a_final_stop_token_is_cut() -> None:
    stop = tokenizer().eos_token_id
    think = tokenizer().encode("<think>x</think>")
    stops = stop_token_ids(tokenizer())
    assert decode_response(tokenizer(), [*think, stop], stops) == "<think>x</think>"
    assert decode_response(tokenizer(), think, stops) == "<think>x</think>"
    assert decode_response(tokenizer(), [stop, *think], stops) == "<|im_end|><think>x</think>"
    assert decode_response(tokenizer(), [stop, stop], stops) == "<|im_end|>"
    assert decode_response(tokenizer(), [stop], stops) == decode_response(tokenizer(), [], stops) == ""


@pytest.mark.parametrize("chat", [[], [{"role": "user", "content": "x"}]])
def test_a_demonstration_must_end_with_the_assistant(chat: list[dict[str, str]]) -> None:
    with pytest.raises(ValueError, match=r"must end with a message of role `assistant`, got (user|no message)"):
        render_demonstration(tokenizer(), chat)


USER = {"role": "user", "content": "Well?"}


def changed(folder: Path, **settings: object) -> PreTrainedTokenizerBase:
    loaded = load_tokenizer(str(folder))
    for name, value in settings.items():
        setattr(loaded, name, value)
    return loaded


def test_a_template_that_never_stops_gets_the_stop_token_appended(tiny_tokenizer_dir: Path) -> None:
    template = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\\n' }}{% endfor %}"
    template += "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    plain = changed(tiny_tokenizer_dir, chat_template=template)
    token_ids, mask = render_demonstration(plain, [USER, {"role": "assistant", "content": "yes"}])
    assert plain.decode(token_ids) == "user: Well?\nassistant: yes\n<|im_end|>"
    assert mask[-1]


def test_a_template_whose_prompt_is_no_prefix_is_refused(tiny_tokenizer_dir: Path) -> None:
    template = "{% for m in messages %}{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}{{ '>' }}{% endif %}"
    odd = changed(tiny_tokenizer_dir, chat_template=template)
    with pytest.raises(ValueError, match="differently from its generation prompt"):
        render_demonstration(odd, [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}])


def test_a_missing_template_is_an_error_that_names_the_cure(tiny_tokenizer_dir: Path) -> None:
    with pytest.raises(ValueError, match=r"no chat template.*chat_template\.jinja"):
        render_prompt(changed(tiny_tokenizer_dir, chat_template=None), [{"role": "user", "content": "x"}])


def test_stop_tokens_are_the_tokenizers_and_the_models(tiny_tokenizer_dir: Path) -> None:
    stop = tokenizer().eos_token_id
    assert stop_token_ids(tokenizer()) == (stop,)
    assert stop_token_ids(tokenizer(), [stop, 5]) == (stop, 5)
    assert stop_token_ids(tokenizer(), 0) == (stop, 0)
    without = changed(tiny_tokenizer_dir, eos_token=None)
    assert stop_token_ids(without, 5) == (5,)
    with pytest.raises(ValueError, match=r"no stop token.*tokenizer_config\.json"):
        stop_token_ids(without)


def test_without_a_stop_token_the_word_none_is_only_a_word(tiny_tokenizer_dir: Path) -> None:
    without = changed(tiny_tokenizer_dir, eos_token=None)
    token_ids, _ = render_demonstration(without, [USER, {"role": "assistant", "content": "None of it"}])
    assert without.decode(token_ids).endswith("None of it<|im_end|>\n")
