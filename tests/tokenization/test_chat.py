from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from lightning_opd.models import load_tokenizer
from lightning_opd.tokenization.chat import decode_response, render_answer, render_prompt
from lightning_opd.tokenization.training import train_tokenizer
from lightning_opd.tokenization.turn_borders import closing_token_id, stop_token_ids
from lightning_opd.tokenization.turns import render_demonstration
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


def changed(folder: Path, **settings: Any) -> PreTrainedTokenizerBase:
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


ENDLESS = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"


def test_stop_tokens_are_the_tokenizers_and_the_models(tiny_tokenizer_dir: Path) -> None:
    stop = tokenizer().eos_token_id
    assert stop_token_ids(tokenizer()) == (stop,)
    assert stop_token_ids(tokenizer(), [stop, 5]) == (stop, 5)
    assert stop_token_ids(tokenizer(), 0) == (stop, 0)
    without = changed(tiny_tokenizer_dir, eos_token=None)
    assert stop_token_ids(without, 5) == (5, stop)  # the template closes its turns with it
    endless = changed(tiny_tokenizer_dir, eos_token=None, chat_template=ENDLESS)
    assert stop_token_ids(endless, 5) == (5,)
    with pytest.raises(ValueError, match=r"no stop token.*tokenizer_config\.json"):
        stop_token_ids(endless)


def test_without_a_stop_token_the_word_none_is_only_a_word(tiny_tokenizer_dir: Path) -> None:
    without = changed(tiny_tokenizer_dir, eos_token=None)
    token_ids, _ = render_demonstration(without, [USER, {"role": "assistant", "content": "None of it"}])
    assert str(without.decode(token_ids)).endswith("None of it<|im_end|>")


GEMMA = (  # closes a turn with a token that is not the tokenizer's eos
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<turn|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def token_id(tokenizer: PreTrainedTokenizerBase, token: str) -> int:
    return int(tokenizer.get_vocab()[token])


def gemma(folder: Path) -> PreTrainedTokenizerBase:
    own = changed(folder, chat_template=GEMMA, eos_token="<|im_end|>")
    own.add_special_tokens({"additional_special_tokens": ["<turn|>"]})
    return own


def test_a_reply_stops_at_the_token_that_closes_a_turn_too(tiny_tokenizer_dir: Path) -> None:
    own = gemma(tiny_tokenizer_dir)
    closer = token_id(own, "<turn|>")
    assert closing_token_id(own) == closer
    assert closing_token_id(tokenizer()) == tokenizer().eos_token_id
    assert stop_token_ids(own, [7]) == (own.eos_token_id, 7, closer)


def test_the_closing_token_is_dropped_only_where_it_was_sampled(tiny_tokenizer_dir: Path) -> None:
    own = gemma(tiny_tokenizer_dir)
    closer, prompt = token_id(own, "<turn|>"), render_prompt(own, [USER])
    reply = own.encode("yes", add_special_tokens=False)
    whole = render_prompt(own, [USER, {"role": "assistant", "content": "yes"}, *ANSWER])
    assert [*prompt, *reply, closer, *render_answer(own, [USER], ANSWER, closer)] == whole
    other = render_answer(own, [USER], ANSWER, own.eos_token_id)  # it stopped at another token
    assert [*prompt, *reply, *other] == whole


def test_a_demonstration_ends_with_the_token_that_closes_a_turn(tiny_tokenizer_dir: Path) -> None:
    own = gemma(tiny_tokenizer_dir)
    token_ids, mask = render_demonstration(own, [USER, {"role": "assistant", "content": "yes"}])
    learned = [token_id for token_id, counts in zip(token_ids, mask, strict=True) if counts]
    assert own.decode(learned) == "yes<turn|>"


THINKING = (  # drops the thoughts of replies before the last user message, and shows an empty block in the last reply
    "{% if tools %}<|im_start|>system\n{% for t in tools %}{{ t | tojson }}{% endfor %}<|im_end|>\n{% endif %}"
    "{% set ns = namespace(last=0) %}"
    "{% for m in messages %}{% if m['role'] == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
    "{% for m in messages %}{% set content = m['content'] %}{% set thoughts = '' %}"
    "{% if m['role'] == 'assistant' and '</think>' in content %}"
    "{% set thoughts = content.split('</think>')[0].split('<think>')[-1] %}"
    "{% set content = content.split('</think>')[-1] %}{% endif %}"
    "{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if m['role'] == 'assistant' and loop.index0 > ns.last and (loop.last or thoughts) %}"
    "{{ '<think>' + thoughts + '</think>' }}{% endif %}"
    "{{ content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
ANSWER = ({"role": "tool", "name": "calc", "content": "75"},)


@pytest.mark.parametrize("template", ["ChatML", "one that rewrites earlier replies"])
@given(chat=chats, answer=contents)
def test_an_answer_is_what_the_template_shows_between_two_replies(
    template: str, chat: list[dict[str, str]], answer: str
) -> None:
    own = tokenizer() if template == "ChatML" else thinking()
    off_policy_ids = render_answer(own, chat, [{"role": "tool", "content": answer}])
    assert own.decode(off_policy_ids) == f"\n<|im_start|>tool\n{answer}<|im_end|>\n<|im_start|>assistant\n"


@cache
def thinking() -> PreTrainedTokenizerBase:
    other = train_tokenizer(TEXTS, vocab_size=288, special_tokens=SPECIAL_TOKENS)
    other.chat_template = THINKING
    return other


def test_half_an_emoji_is_replaced() -> None:
    ids = render_answer(tokenizer(), [USER], [{"role": "tool", "content": "\ud83d!"}])
    assert "tool\n\ufffd!<" in tokenizer().decode(ids)
    ids = render_answer(tokenizer(), [USER], [{"role": "tool", "content": "\ud83d\ude00!"}])
    assert "tool\n\N{GRINNING FACE}!<" in tokenizer().decode(ids)


def test_a_template_without_the_assistants_words_has_no_place_for_an_answer(tiny_tokenizer_dir: Path) -> None:
    template = "{% for m in messages %}{% if m['role'] != 'assistant' %}{{ m['content'] }}{% endif %}{% endfor %}"
    with pytest.raises(ValueError, match="does not show an assistant's words"):
        render_answer(changed(tiny_tokenizer_dir, chat_template=template), [USER], ANSWER)


@pytest.mark.parametrize("own", [tokenizer, thinking])
def test_an_agents_demonstration_is_laid_out_like_its_episode(own: Callable[[], PreTrainedTokenizerBase]) -> None:
    calls = ("<think>a</think><tool_call>{}</tool_call>", "<think>b</think>no call", "<think>c</think>85")
    before = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"}, USER]
    chat, expected = list(before), render_prompt(own(), before)
    mask = [False] * len(expected)
    for i, call in enumerate(calls):
        reply = [*own().encode(call, add_special_tokens=False), own().eos_token_id]
        off_policy_ids = render_answer(own(), chat, ANSWER) if i + 1 < len(calls) else []
        expected += reply + off_policy_ids
        mask += [True] * len(reply) + [False] * len(off_policy_ids)
        chat += [{"role": "assistant", "content": call}, *(ANSWER if i + 1 < len(calls) else ())]
    assert render_demonstration(own(), chat) == (expected, mask)


def test_a_template_shows_the_tools_of_the_first_message() -> None:
    schema = {"type": "function", "function": {"name": "calc", "description": "Work it out.", "parameters": {}}}
    for own in (tokenizer(), thinking()):
        rendered = (render_prompt(own, [message]) for message in (USER, {**USER, "tools": (schema,)}))
        plain, shown = (str(own.decode(token_ids)) for token_ids in rendered)
        assert shown.endswith(plain)
        assert '"name": "calc"' in shown.removesuffix(plain)
        after = render_answer(own, [{**USER, "tools": (schema,)}], ANSWER)
        assert after == render_answer(own, [USER], ANSWER)
