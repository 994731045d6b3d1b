"""Rows padded on the right are read without a mask, where that is exact."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from lightning_opd.functional import length_groups
from lightning_opd.models import LanguageModel
from tests.architectures import ARCHITECTURES, VOCAB, tiny_architecture

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SLIDING: dict[str, dict[str, Any]] = {
    **{name: {} for name in ("cohere2", "exaone4", "gemma2", "gemma3_text", "gpt_oss", "mistral", "olmo3")},
    "qwen3": {"use_sliding_window": True, "layer_types": ["sliding_attention"] * 2},
}


class Told(LanguageModel):
    """Remembers the masks that the model was given."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__(model, VOCAB)
        self.masks: list[torch.Tensor | None] = []
        model.register_forward_pre_hook(
            lambda module, args, kwargs: self.masks.append(kwargs["attention_mask"]), with_kwargs=True
        )


def rows(*lengths: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return torch.randint(3, VOCAB, mask.shape, generator=generator) * mask, mask


def alone(model: LanguageModel, token_ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Each row in a forward of its own, with a mask of ones: there is nothing to hide."""
    states = [
        model._call(row[None, :n], torch.ones(1, n, dtype=torch.bool))[0]
        for row, n in zip(token_ids, mask.sum(1).tolist(), strict=True)
    ]
    return torch.cat([logits[:-1] for logits in states])


def check_exact(model: Told, *lengths: int) -> None:
    token_ids, mask = rows(*lengths)
    with torch.no_grad():
        model.states(token_ids, mask)
        model.masks.clear()
        got = model.head().logits(model.states(token_ids, mask))
        assert model.masks == [None] * len(model.masks)
        expected = alone(model, token_ids, mask)
    predicted = mask.clone()
    predicted[:, 0] = False
    scale = float(expected.abs().max())
    assert float((got[predicted] - expected).abs().max()) < 1e-5 * scale


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_reads_padded_rows_without_a_mask_as_it_reads_them_alone(name: str) -> None:
    check_exact(Told(tiny_architecture(name)), 21, 4, 13)


@pytest.mark.parametrize("name", SLIDING)
def test_attention_that_slides_inside_the_rows_still_does(name: str) -> None:
    changes: dict[str, Any] = {"sliding_window": 5, **SLIDING[name]}
    check_exact(Told(tiny_architecture(name, **changes)), 21, 4, 13)


def test_a_model_that_reads_what_comes_after_keeps_its_mask() -> None:
    model = Told(tiny_architecture("gemma3_text", use_bidirectional_attention=True))
    token_ids, mask = rows(9, 4)
    model.states(token_ids, mask)
    assert model.masks[-1] is not None


def test_rows_that_are_not_padded_on_the_right_keep_their_mask() -> None:
    model = Told(tiny_architecture("qwen3"))
    token_ids, mask = rows(9, 4)
    moved = [torch.nn.functional.pad(x, (3, 2)) for x in (token_ids, mask)]
    got, expected = model.states(*moved)[:, 3:-2], model.states(token_ids, mask)
    assert model.masks[0] is not None
    mask[:, 0] = False
    torch.testing.assert_close(got[mask], expected[mask], atol=1e-5, rtol=0)


def test_rows_of_other_length_go_into_forwards_of_their_own_where_that_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    token_ids, mask = rows(4, 20, 3, 19)
    states, gradients, shapes = [], [], []
    for cost in (10**6, 1):
        monkeypatch.setattr(length_groups, "FORWARD_COST", cost)
        model = Told(tiny_architecture("qwen3"))
        weight = model.model.get_parameter("model.layers.0.mlp.up_proj.weight")
        found = model.states(token_ids, mask) * mask[..., None]
        (found * torch.arange(20)[:, None]).sum().backward()
        assert weight.grad is not None
        states.append(found.detach())
        gradients.append(weight.grad)
        shapes.append((model.padded_tokens(mask), model.groups(mask)))
    assert shapes == [(80, [[0, 1, 2, 3]]), (48, [[1, 3], [0, 2]])]
    torch.testing.assert_close(states[0], states[1], atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-2, rtol=1e-4)
