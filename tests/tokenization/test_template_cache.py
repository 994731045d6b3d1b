from __future__ import annotations

from transformers import PreTrainedTokenizerBase

from lightning_opd.tokenization.template_cache import by_template
from lightning_opd.types import TEMPLATE_SETTINGS
from tests.tokenization.templates import TEMPLATES, tokenizer_with


def test_an_answer_is_kept_until_template_settings_or_tokens_change() -> None:
    tokenizer = tokenizer_with.__wrapped__("ChatML")
    calls: list[tuple[str, bool]] = []

    @by_template
    def ask(tokenizer: PreTrainedTokenizerBase, word: str, *, loud: bool = False) -> str:
        calls.append((word, loud))
        return f"{word} {len(calls)}"

    assert ask(tokenizer, "a") == ask(tokenizer, "a") == "a 1"
    assert ask(tokenizer, "a", loud=True) == ask(tokenizer, "a", loud=True) == "a 2"
    assert ask(tokenizer, "b") == "b 3"
    tokenizer.chat_template = TEMPLATES["date"]
    assert ask(tokenizer, "a") == "a 4"
    tokenizer.init_kwargs[TEMPLATE_SETTINGS] = {"enable_thinking": False}
    assert ask(tokenizer, "a") == "a 5"
    tokenizer.add_tokens(["<new>"])
    assert ask(tokenizer, "a") == "a 6"
    tokenizer.eos_token = "<new>"
    assert ask(tokenizer, "a") == "a 7"
