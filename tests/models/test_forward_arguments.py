"""The output matrix multiplies only the states whose logits are read, and is never copied for each row."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor

from lightning_opd.models import LanguageModel, logits_to_keep
from lightning_opd.rollouts import InProcessEngine
from lightning_opd.types import Sampling
from tests.architectures import VOCAB, tiny_architecture

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TOKEN_IDS = torch.arange(28).reshape(4, 7) % (VOCAB - 3) + 3
CPU = torch.device("cpu")


def inputs_of_the_head(model: PreTrainedModel) -> list[Tensor]:
    read: list[Tensor] = []
    model.get_output_embeddings().register_forward_pre_hook(lambda module, args: read.append(args[0]))
    return read


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma3_text", "granite", "mamba"])
@torch.no_grad()
def test_no_logits_are_made_where_states_are_read(name: str) -> None:
    model = tiny_architecture(name)
    language_model, mask = LanguageModel(model, VOCAB), torch.ones_like(TOKEN_IDS, dtype=torch.bool)
    language_model.states(TOKEN_IDS, mask)  # the first call finds out whether padding is read
    read = inputs_of_the_head(model)
    states = language_model.states(TOKEN_IDS, mask)
    assert [len(x[0]) for x in read] == [0]
    logits = model(input_ids=TOKEN_IDS, use_cache=False).logits[:, :-1, :VOCAB]
    assert torch.allclose(language_model.head().logits(states[:, 1:]), logits, atol=1e-4 * float(logits.abs().max()))


def test_rollouts_give_the_output_matrix_states_without_gaps() -> None:
    """`linear` copies a matrix that needs no gradient once for each row of states that it cannot see as one matrix."""
    model, engine = tiny_architecture("llama"), InProcessEngine()
    engine.sync(model, 0)
    read = inputs_of_the_head(model)
    engine.generate(TOKEN_IDS.tolist(), 1, list(range(len(TOKEN_IDS))), Sampling(max_new_tokens=2, stop_token_ids=(2,)))
    assert [tuple(x.shape[:2]) for x in read] == [(4, 1), (4, 1)]
    assert all(x.is_contiguous() for x in read)


@pytest.mark.parametrize("name", ["llama", "gemma2", "jamba", "gpt2"])
def test_a_forward_makes_the_logits_of_the_columns_asked_for(name: str) -> None:
    model = tiny_architecture(name)
    wanted = logits_to_keep(model, [-1, 2], CPU)
    with torch.no_grad():
        whole = model(input_ids=TOKEN_IDS, use_cache=False).logits
        got = model(input_ids=TOKEN_IDS, use_cache=False, **wanted).logits
    if isinstance(wanted.get("logits_to_keep"), Tensor):
        assert torch.allclose(got, whole[:, [-1, 2]], atol=1e-5 * float(whole.abs().max()))
    else:
        assert torch.allclose(got[:, -1], whole[:, -1], atol=1e-5 * float(whole.abs().max()))
