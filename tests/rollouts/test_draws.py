"""The draw against an exact one in float64, at small and at real vocabularies."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_opd.rollouts.drawing import BLOCK, NUM_SORTED, _block_sums, _hit, draw, nucleus
from lightning_opd.rollouts.noise import row_seed, uniforms
from lightning_opd.types import Sampling

VOCABS = (1, 12, BLOCK - 1, BLOCK, BLOCK + 1, 4_096, 20_003)
EPS = torch.finfo(torch.float32).eps


def gaussian(rows: int, vocab: int, scale: float = 2.0, dtype: torch.dtype = torch.float32) -> Tensor:
    return scale * torch.randn(rows, vocab, generator=torch.Generator().manual_seed(vocab), dtype=dtype)


def seeds(num: int) -> Tensor:
    return torch.tensor([row_seed(5, i) for i in range(num)])


def exact_weights(logits: Tensor, sampling: Sampling) -> Tensor:
    """Probabilities in float64 from one sort of the whole vocabulary, of equal ones the first."""
    probs = torch.softmax(logits.double() / sampling.temperature, dim=-1)
    if sampling.top_k is not None:
        probs = torch.where(logits >= logits.topk(sampling.top_k, dim=-1).values[:, -1:], probs, 0.0)
    ordered, order = probs.sort(dim=-1, descending=True, stable=True)
    kept = ordered.cumsum(dim=-1) - ordered < sampling.top_p * probs.sum(dim=-1, keepdim=True)
    probs = torch.where(torch.zeros_like(kept).scatter(-1, order, kept), probs, 0.0)
    return probs / probs.sum(dim=-1, keepdim=True)


@pytest.mark.parametrize("settings", [{}, {"temperature": 0.3}, {"top_p": 0.8}, {"top_k": 9, "top_p": 0.7}], ids=str)
@pytest.mark.parametrize("vocab", VOCABS)
def test_the_same_noise_hits_the_token_of_the_exact_cumulative_distribution(
    vocab: int, settings: dict[str, Any]
) -> None:
    """In float64 the same token; in float32 one whose interval the noise misses by no more than rounding."""
    if settings.get("top_k", 0) > vocab:
        pytest.skip("as many tokens are not there")
    sampling, rows = Sampling(**settings), 40 if vocab > 4_096 else 200
    noise = uniforms(seeds(rows), 3)
    for dtype, tolerance in ((torch.float64, 0.0), (torch.float32, 16 * EPS)):
        logits = gaussian(rows, vocab, dtype=dtype)
        tokens, logprobs = draw(logits, seeds(rows), 3, sampling)
        probs = exact_weights(logits, sampling)
        upper = probs.cumsum(dim=-1)
        chosen = tokens[:, None]
        miss = torch.maximum((upper - probs).gather(-1, chosen)[:, 0] - noise, noise - upper.gather(-1, chosen)[:, 0])
        assert miss.max() <= tolerance + 1e-15
        assert logprobs.dtype == dtype
        assert logprobs.double() == pytest.approx(
            probs.gather(-1, chosen)[:, 0].log(), abs=1e-12 if not tolerance else 5e-6
        )


def test_every_token_is_hit_in_proportion_to_its_probability() -> None:
    """Chi-square over all 600 tokens of three blocks, 120,000 draws."""
    vocab, count = 600, 120_000
    logits = gaussian(1, vocab, 1.0)
    tokens, _ = draw(logits.expand(count, vocab), torch.arange(count), 7, Sampling())
    expected = count * torch.softmax(logits[0].double(), dim=-1)
    statistic = ((torch.bincount(tokens, minlength=vocab) - expected) ** 2 / expected).sum()
    assert abs(float(statistic) - (vocab - 1)) < 5 * (2 * (vocab - 1)) ** 0.5


@pytest.mark.parametrize("settings", [{}, {"top_p": 0.9}, {"top_k": 40, "min_p": 0.01}, {"temperature": 0.0}], ids=str)
@pytest.mark.parametrize("vocab", [12, 700, 5_003])
def test_a_draw_does_not_depend_on_the_other_rows_bit_for_bit(vocab: int, settings: dict[str, Any]) -> None:
    logits, sampling = gaussian(128, vocab), Sampling(**settings)
    together = draw(logits, seeds(128), torch.arange(128), sampling)
    for size in (1, 3, 50):
        parts = [
            draw(logits[i : i + size], seeds(128)[i : i + size], torch.arange(128)[i : i + size], sampling)
            for i in range(0, 128, size)
        ]
        for index, whole in enumerate(together):
            assert torch.equal(torch.cat([part[index] for part in parts]), whole)


def test_one_position_for_all_is_that_position_for_each() -> None:
    for position in (0, 1, 9_999):
        assert torch.equal(uniforms(seeds(50), position), uniforms(seeds(50), torch.full((50,), position)))


@pytest.mark.parametrize("settings", [{}, {"top_p": 0.9}, {"top_k": 3}, {"min_p": 0.5}], ids=str)
@pytest.mark.parametrize("vocab", [12, 256, 1_000])
def test_extreme_logits(vocab: int, settings: dict[str, Any]) -> None:
    sampling, rows = Sampling(**settings), 64
    one = torch.full((rows, vocab), -1e4)
    one[torch.arange(rows), torch.arange(rows) % vocab] = 1e4
    tokens, logprobs = draw(one, seeds(rows), 0, sampling)
    assert tokens.tolist() == [i % vocab for i in range(rows)]
    assert not logprobs.any()
    half = gaussian(rows, vocab)
    half[:, ::2] = -torch.inf
    tokens, logprobs = draw(half, seeds(rows), 0, sampling)
    assert (tokens % 2 == 1).all(), "what has no weight is never drawn"
    assert logprobs.isfinite().all()
    last = torch.full((rows, vocab), -torch.inf)
    last[:, vocab - 1] = 3e38
    assert (draw(last, seeds(rows), 0, sampling)[0] == vocab - 1).all()
    for broken in (float("nan"), float("inf")):
        bad = gaussian(rows, vocab)
        bad[::2, 5] = broken
        tokens, logprobs = draw(bad, seeds(rows), 0, sampling)
        assert ((tokens >= 0) & (tokens < vocab)).all()
        assert logprobs[::2].isnan().all(), "a broken row has no log-prob"
        good = draw(bad[1::2], seeds(rows)[1::2], 0, sampling)
        assert torch.equal(tokens[1::2], good[0]), "and spoils no other"
        assert torch.equal(logprobs[1::2], good[1])


def test_noise_at_the_end_of_a_block_or_of_the_whole_hits_a_token_that_has_weight() -> None:
    """The sums of blocks and the sum inside one are rounded each in its own way."""
    weights = torch.softmax(gaussian(2_000, 700), dim=-1)
    weights[:, 1::3] = weights[:, 200:256] = weights[:, 680:] = 0.0
    cumulative = _block_sums(weights).cumsum(dim=-1)
    for border in (0, 1, 2):
        exact = cumulative[:, border : border + 1] / cumulative[:, -1:]
        for noise in (exact, torch.nextafter(exact, torch.zeros_like(exact))):
            tokens = _hit(weights, cumulative, noise.clamp(max=1 - 2.0**-52))
            assert (weights.gather(-1, tokens) > 0).all()


def test_equal_logits_are_equally_likely() -> None:
    vocab, count = 300, 15_000
    tokens, logprobs = draw(torch.zeros(1, vocab).expand(count, vocab), torch.arange(count), 0, Sampling())
    assert logprobs == pytest.approx(torch.full((count,), -5.703782), abs=1e-6)
    counts = torch.bincount(tokens, minlength=vocab)
    assert float(((counts - 50) ** 2 / 50).sum()) == pytest.approx(299, abs=5 * (2 * 299) ** 0.5)


@pytest.mark.parametrize("top_p", [0.01, 0.5, 0.9, 0.999, 1 - 1e-9])
@pytest.mark.parametrize("scale", [0.0, 0.5, 3.0, 12.0])
def test_a_nucleus_found_among_the_likeliest_is_that_of_a_full_sort(
    scale: float, top_p: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Flat and peaked, and with many equally likely tokens, as bfloat16 logits have."""
    logits = gaussian(6, 2 * NUM_SORTED[-1], scale).bfloat16().float()
    weights = torch.softmax(logits, dim=-1)
    found = nucleus(weights, top_p)
    monkeypatch.setattr("lightning_opd.rollouts.drawing.NUM_SORTED", ())
    assert torch.equal(found, nucleus(weights, top_p))
    ordered, order = weights.double().sort(dim=-1, descending=True, stable=True)
    exact = torch.zeros_like(found).scatter(-1, order, ordered.cumsum(dim=-1) - ordered < top_p * ordered.sum(-1, True))
    difference = (torch.where(found, weights, 0.0).sum(-1) - torch.where(exact, weights, 0.0).sum(-1)).abs()
    assert difference.max() <= 1e-5
    if top_p < 0.9991:
        assert ((found != exact).sum(dim=-1) <= 1).all(), "but for a border within rounding"


def test_of_equally_likely_tokens_the_first_belong_to_the_nucleus() -> None:
    assert nucleus(torch.full((1, 10), 0.1), 0.35)[0].tolist() == [True] * 4 + [False] * 6
    assert nucleus(torch.tensor([[0.1, 0.4, 0.1, 0.2, 0.2]]), 0.55)[0].tolist() == [False, True, False, True, False]
