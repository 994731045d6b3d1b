from __future__ import annotations

import pytest

from lightning_opd.tokenization.turn_borders import closing_token_id, stop_token_ids
from tests.tokenization.templates import tokenizer_with


@pytest.mark.parametrize(
    ("template", "closer", "stops"),
    [
        ("ChatML", "<|im_end|>", ["<|im_end|>"]),
        ("own closer", "<turn|>", ["<|im_end|>", "<turn|>"]),
        ("no closer", None, ["<|im_end|>", "<|user|>", "<|tool|>"]),
        ("call closer", "<turn|>", ["<|im_end|>", "<turn|>", "<|tool|>"]),
        ("two closers", "<|im_end|>", ["<|im_end|>"]),
        ("last closer", "<|im_end|>", ["<|im_end|>"]),
        ("spaces", "<|im_end|>", ["<|im_end|>"]),
        ("strips thoughts", "<|im_end|>", ["<|im_end|>"]),
        ("opens a thought", "<|im_end|>", ["<|im_end|>"]),
        ("parts", "<|im_end|>", ["<|im_end|>"]),
        ("alternates", "<|im_end|>", ["<|im_end|>"]),
    ],
)
def test_replies_stop_where_the_template_ends_a_turn(template: str, closer: str | None, stops: list[str]) -> None:
    tokenizer = tokenizer_with(template)
    found = closing_token_id(tokenizer)
    assert (None if found is None else tokenizer.convert_ids_to_tokens(found)) == closer
    assert tokenizer.convert_ids_to_tokens(list(stop_token_ids(tokenizer))) == stops
