from __future__ import annotations

import torch

from lightning_opd.functional.special_tokens import first_special_token_mask


def test_only_the_first_special_token_of_each_response_loses_its_signal() -> None:
    token_ids = torch.tensor([[7, 1, 8, 7, 2], [1, 2, 7, 7, 8], [1, 2, 3, 1, 2]])
    response_mask = torch.tensor([[0, 1, 1, 1, 1], [0, 1, 1, 1, 0], [0, 1, 1, 1, 1]], dtype=torch.bool)
    kept = first_special_token_mask(token_ids, response_mask, [7, 8])
    assert (~kept).nonzero().tolist() == [[0, 2], [1, 2]]  # the 7 of the first prompt is not the student's


def test_without_special_ids_every_token_keeps_its_signal() -> None:
    token_ids, nothing = torch.tensor([[1, 2, 3]]), torch.zeros(1, 3, dtype=torch.bool)
    assert first_special_token_mask(token_ids, ~nothing, []).all()
    assert first_special_token_mask(token_ids, nothing, [1, 2, 3]).all()
