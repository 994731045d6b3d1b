from __future__ import annotations

import pytest

from lightning_opd.models import load_causal_lm, load_tokenizer
from lightning_opd.tokenization.turn_borders import stop_token_ids
from tests.real import fetch


def test_the_real_model_stops_at_its_turn_border() -> None:
    folder = str(fetch.smollm2())
    tokenizer, model = load_tokenizer(folder), load_causal_lm(folder)
    stops = stop_token_ids(tokenizer, model.generation_config.eos_token_id)
    assert tokenizer.convert_ids_to_tokens(list(stops)) == ["<|im_end|>"]


@pytest.mark.parametrize("family", fetch.FAMILIES)
def test_every_real_tokenizer_loads_with_its_template(family: str) -> None:
    assert fetch.tokenizer(family).chat_template
