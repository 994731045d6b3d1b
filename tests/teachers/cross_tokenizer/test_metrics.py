from __future__ import annotations

import pytest
import torch

from lightning_opd.teachers.cross_tokenizer.metrics import alignment_metrics, dominant_token
from lightning_opd.teachers.cross_tokenizer.roles import RoleTable
from lightning_opd.types import SampledTokens

ROLES = RoleTable({8: 3, 9: 4}, {8: "end_of_turn", 9: "think_open"}, frozenset({8, 9}), frozenset({3, 4}))


def batch() -> SampledTokens:
    """One row: a prompt token that equals a control token, five response tokens, padding."""
    return SampledTokens.from_sequences(
        [[8, 1, 2, 8, 9, 8], [1]],
        [[False, True, True, True, True, True], [False]],
        0,
        torch.float64,
        torch.device("cpu"),
        logprobs=[[0.0, -1.0, -2.0, -0.5, -0.25, -4.0], [0.0]],
    )


TEACHER = torch.tensor([[0.0, -3.0, 0.0, -1.0, 0.0, -1.0], [0.0] * 6], dtype=torch.float64)
ALIGNED = torch.tensor([[False, True, False, True, False, True], [False] * 6])


def test_fractions_are_of_all_response_tokens_and_means_of_scored_ones() -> None:
    metrics = {
        name: (float(value), float(count))
        for name, (value, count) in alignment_metrics(batch(), TEACHER, ALIGNED, ROLES).items()
    }
    assert metrics["kept_tokens"] == (3.0, 5.0)
    assert metrics["dropped_logprob"] == pytest.approx((2.25, 7.75))
    assert metrics["role_log_ratio_end_of_turn"] == pytest.approx((-0.5 + 3.0, 2))
    assert metrics["role_log_ratio_think_open"] == (0, 0)


def test_the_dominant_token_carries_the_largest_fraction_of_all_log_ratios() -> None:
    tokens = batch()
    found = dominant_token(tokens.token_ids, TEACHER - tokens.rollout_logprobs, ALIGNED)
    assert found is not None
    assert found[0] == 8
    assert float(found[1]) == pytest.approx((0.5 + 3.0) / (0.5 + 3.0 + 2.0))
    assert dominant_token(tokens.token_ids, torch.zeros_like(TEACHER), ALIGNED) is None
    assert dominant_token(tokens.token_ids, TEACHER, torch.zeros_like(ALIGNED)) is None
