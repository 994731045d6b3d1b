from __future__ import annotations

from typing import Any

import pytest
import torch

from lightning_opd.types import LinearHead, Sampling


def test_a_head_cuts_the_padded_rows() -> None:
    weight, bias, states = torch.randn(5, 3), torch.randn(5), torch.randn(2, 4, 3)
    expected = (states @ weight.T + bias)[..., :4]
    assert torch.allclose(LinearHead(weight, bias, 4).logits(states), expected)
    logits = torch.randn(2, 5)
    assert torch.equal(LinearHead(None, None, 4).logits(logits), logits[:, :4])


@pytest.mark.parametrize("wrong", [{"temperature": -0.1}, {"top_p": 1.5}, {"max_new_tokens": 0}], ids=str)
def test_impossible_sampling_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"`{next(iter(wrong))}`"):
        Sampling(**wrong)
