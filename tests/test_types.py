from __future__ import annotations

from typing import Any

import pytest
import torch

from lightning_opd.functional.logprobs import linear_token_statistics
from lightning_opd.types import LinearHead, Sampling


def test_a_head_cuts_the_padded_rows() -> None:
    weight, bias, states = torch.randn(5, 3), torch.randn(5), torch.randn(2, 4, 3)
    expected = (states @ weight.T + bias)[..., :4]
    assert torch.allclose(LinearHead(weight, bias, 4).logits(states), expected)
    logits = torch.randn(2, 5)
    assert torch.equal(LinearHead(None, None, 4).logits(logits), logits[:, :4])


@pytest.mark.parametrize(("scale", "soft_cap"), [(0.25, None), (1.0, 2.0), (3.0, 2.0)])
@pytest.mark.parametrize("chunk_size", [None, 1, 3])
def test_a_scaled_and_capped_head_has_the_dense_values_and_gradients(
    scale: float, soft_cap: float | None, chunk_size: int | None
) -> None:
    """Chunk by chunk and against the formula written out."""
    weight, states = torch.randn(5, 3, dtype=torch.float64), torch.randn(2, 4, 3, dtype=torch.float64)
    token_ids, mask = torch.randint(0, 4, (2, 4)), torch.tensor([[False, True, True, True], [False, True, False, True]])
    values, gradients = [], []
    for is_ours in (True, False):
        inputs = [x.clone().requires_grad_() for x in (weight, states)]
        head = LinearHead(inputs[0], None, 4, scale=scale, soft_cap=soft_cap)
        if is_ours:
            logprobs = linear_token_statistics(inputs[1], head.logits, token_ids, mask, 0.7, chunk_size)[0]
        else:
            logits = scale * (inputs[1] @ inputs[0].T)[..., :4]
            logits = logits if soft_cap is None else soft_cap * (logits / soft_cap).tanh()
            logprobs = (logits / 0.7).log_softmax(-1).gather(-1, token_ids[..., None]).squeeze(-1) * mask
        values.append(logprobs.detach())
        gradients.append(torch.autograd.grad((logprobs * torch.arange(8).reshape(2, 4)).sum(), inputs))
    assert torch.allclose(values[0], values[1], atol=1e-12)
    assert all(torch.allclose(one, other, atol=1e-12) for one, other in zip(*gradients, strict=True))


@pytest.mark.parametrize("wrong", [{"temperature": -0.1}, {"top_p": 1.5}, {"max_new_tokens": 0}], ids=str)
def test_impossible_sampling_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"`{next(iter(wrong))}`"):
        Sampling(**wrong)


def test_a_cut_head_has_the_first_rows_and_a_whole_one_is_not_copied() -> None:
    weight, bias, states = torch.randn(5, 3), torch.randn(5), torch.randn(2, 3)
    head = LinearHead(weight, bias, 4, scale=2.0, soft_cap=3.0)
    assert torch.equal(head.cut(3).logits(states), head.logits(states)[:, :3])
    assert head.cut(9).vocab_size == 4
    assert LinearHead(weight, bias, 5).cut(5).weight is weight
    assert torch.equal(LinearHead(None, None, 4).cut(3).logits(weight), weight[:, :3])
