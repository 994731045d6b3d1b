"""Rows packed one behind the other are read as each is alone, where attention takes them; else nothing changes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor

from lightning_opd.models import LanguageModel
from lightning_opd.models.rows import pack, unpack
from tests.architectures import VOCAB, tiny_architecture
from tests.flash_attention import attend_by, flash_installed

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SLIDING: dict[str, Any] = {"sliding_window": 5}
PACKED: dict[str, dict[str, Any]] = {
    "cohere2": SLIDING,
    "gemma2": SLIDING,
    "gemma3_text": SLIDING,
    "glm4": {},
    "gpt2": {},
    "gpt_neox": {},
    "llama": {},
    "mistral": SLIDING,
    "olmo3": SLIDING,
    "opt": {},
    "phi3": {},
    "qwen3": {"use_sliding_window": True, "layer_types": ["full_attention", "sliding_attention"], **SLIDING},
    "stablelm": {},
    "starcoder2": SLIDING,
}
ROUNDED = 1e-6
"""Of most architectures: they normalise in float32, whatever the weights are in."""
EXACT = {"gpt2": 1e-10, "gpt_neox": 1e-10, "opt": 1e-10, "stablelm": 1e-10, "starcoder2": 1e-10}
CARRYING = ("falcon_h1", "lfm2", "qwen3_5_text", "recurrent_gemma")
"""Architectures with layers that read on into the next row."""


@pytest.fixture(autouse=True)
def _flash() -> Iterator[None]:
    with flash_installed():
        yield


def rows(*lengths: int) -> tuple[Tensor, Tensor]:
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return torch.randint(3, VOCAB, mask.shape, generator=torch.Generator().manual_seed(0)) * mask, mask


def shapes_read(model: PreTrainedModel) -> list[tuple[int, ...]]:
    """Return the shapes of what a model reads from now on."""
    found: list[tuple[int, ...]] = []
    model.register_forward_pre_hook(
        lambda module, args, kwargs: found.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    return found


def learned(model: PreTrainedModel, token_ids: Tensor, mask: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the states that predict each row's tokens, and the gradients of a function of them."""
    model.zero_grad()
    states = LanguageModel(model, VOCAB).states(token_ids, mask)
    is_predicted = mask & (mask.cumsum(dim=1) > 1)
    found = states[is_predicted]
    weights = torch.linspace(-1, 1, found.numel(), dtype=found.dtype).view_as(found)
    (found * weights).sum().backward()
    return found.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def check_alike(one: Tensor, other: Tensor, tolerance: float) -> None:
    assert float((one - other).norm()) <= tolerance * max(float(other.norm()), 1e-3)


def check_padded_under_flash(model: PreTrainedModel) -> None:
    """Check that flash attention changes nothing: neither how rows are read nor what comes of them."""
    batch = rows(13, 21, 4)
    expected, _ = learned(model, *batch)
    attend_by("flash_attention_3", model)
    shapes = shapes_read(model)
    states, _ = learned(model, *batch)
    assert shapes[-1] == (3, 21)
    check_alike(states, expected, ROUNDED)


@pytest.mark.parametrize("name", PACKED)
def test_states_and_gradients_of_packed_rows_are_those_of_padded_ones(name: str) -> None:
    model = tiny_architecture(name, torch.float64, **PACKED[name])
    batch, tolerance = rows(13, 21, 1, 4), EXACT.get(name, ROUNDED)
    expected, expected_gradients = learned(model, *batch)
    attend_by("flash_attention_3", model)
    assert LanguageModel(model, VOCAB)._reads_packed_rows
    shapes = shapes_read(model)
    states, gradients = learned(model, *batch)
    assert shapes[-1] == (1, 13 + 21 + 1 + 4)
    check_alike(states, expected, tolerance)
    assert gradients.keys() == expected_gradients.keys()
    for parameter, gradient in gradients.items():
        check_alike(gradient, expected_gradients[parameter], tolerance)


def test_one_forward_reads_each_real_token_once() -> None:
    model = tiny_architecture("llama", torch.float64)
    attend_by("flash_attention_3", model)
    token_ids, mask = rows(100, 2, 1, 90)
    language_model = LanguageModel(model, VOCAB)
    assert language_model.padded_tokens(mask) == 193
    assert language_model.groups(mask) == [[0, 1, 2, 3]]
    shapes = shapes_read(model)
    language_model.states(token_ids, mask)
    assert shapes == [(1, 193)]


def test_rows_may_be_padded_anywhere() -> None:
    model = tiny_architecture("gpt2", torch.float64)
    token_ids, mask = rows(9, 4, 6)
    expected, _ = learned(model, token_ids, mask)
    attend_by("flash_attention_3", model)
    moved_ids, moved_mask = (
        torch.stack([torch.nn.functional.pad(row, (0, 8)).roll(n) for row, n in zip(x, (3, 8, 0), strict=True)])
        for x in (token_ids, mask)
    )
    check_alike(learned(model, moved_ids, moved_mask)[0], expected, 1e-12)


def test_a_row_alone_is_read_as_ever() -> None:
    model = tiny_architecture("gpt2", torch.float64)
    batch = rows(17)
    expected, _ = learned(model, *batch)
    attend_by("flash_attention_3", model)
    check_alike(learned(model, *batch)[0], expected, 1e-12)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_attention_that_would_need_a_mask_for_packed_rows_gets_padded_ones(attention: str) -> None:
    model = tiny_architecture("llama")
    attend_by(attention, model)
    token_ids, mask = rows(13, 21, 4)
    language_model = LanguageModel(model, VOCAB)
    shapes = shapes_read(model)
    language_model.states(token_ids, mask)
    assert shapes[-1] == (3, 21)
    assert language_model.padded_tokens(mask) == 63


@pytest.mark.parametrize("name", CARRYING)
def test_architectures_that_carry_a_state_from_row_to_row_get_padded_ones(name: str) -> None:
    model = tiny_architecture(name, torch.float64)
    check_padded_under_flash(model)
    coarse = tiny_architecture(name, torch.bfloat16)  # in which a little that is carried looks like rounding
    attend_by("flash_attention_3", coarse)
    assert not LanguageModel(coarse, VOCAB)._reads_packed_rows


def test_an_architecture_whose_attention_never_learns_the_positions_gets_padded_rows() -> None:
    model = tiny_architecture("llama", torch.float64)
    for name, module in model.named_modules():
        if name.endswith("self_attn"):
            module.register_forward_pre_hook(
                lambda module, args, kwargs: (args, {**kwargs, "position_ids": None}), with_kwargs=True
            )
    check_padded_under_flash(model)


@pytest.mark.parametrize("kind", ["flash_attention_2", "flash_attention_3", "flash_attention_4"])
def test_transformers_gives_all_flash_attention_the_masks_by_which_it_is_known(kind: str) -> None:
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, flash_attention_mask

    assert ALL_MASK_ATTENTION_FUNCTIONS[kind] is flash_attention_mask


def test_unpacking_puts_everything_back() -> None:
    token_ids, mask = rows(3, 7, 0, 2)
    packed, positions = pack(token_ids, mask)
    assert positions.tolist() == [[0, 1, 2, 0, 1, 2, 3, 4, 5, 6, 0, 1]]
    assert torch.equal(unpack(packed[..., None].double(), mask)[..., 0].long(), token_ids)
