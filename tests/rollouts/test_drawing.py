from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import LongTensor, Tensor
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    MinPLogitsWarper,
    PreTrainedTokenizerBase,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from lightning_opd.errors import ConfigError
from lightning_opd.models import load_tokenizer
from lightning_opd.rollouts.drawing import draw, sampling_weights
from lightning_opd.types import Sampling
from tests.rollouts.test_in_process import PROMPTS, SAMPLING, engine_of, seeds
from tests.tiny import save_model

VOCAB = 12
CASES: list[dict[str, Any]] = [
    {},
    {"top_k": 3},
    {"top_k": VOCAB},
    {"top_k": 100},
    {"min_p": 0.2},
    {"min_p": 1.0},
    {"repetition_penalty": 1.7},
    {"repetition_penalty": 0.6},
    {"top_k": 5, "top_p": 0.7},
    {"top_p": 0.9, "min_p": 0.3},
    {"top_k": 6, "top_p": 0.8, "min_p": 0.1, "repetition_penalty": 1.3, "temperature": 1.4},
]


def sampling_logprobs(logits: Tensor, sampling: Sampling, seen: Tensor) -> Tensor:
    weights = sampling_weights(logits, sampling, seen).double()
    return (weights / weights.sum(dim=-1, keepdim=True)).log().float()


def transformers_logprobs(logits: Tensor, sampling: Sampling, token_ids: Tensor) -> Tensor:
    """What `generate` of transformers draws from."""
    steps: list[LogitsProcessor] = [
        RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty),
        TemperatureLogitsWarper(sampling.temperature),
        TopPLogitsWarper(sampling.top_p),
    ]
    if sampling.top_k is not None:
        steps.insert(2, TopKLogitsWarper(sampling.top_k))
    if sampling.min_p:
        steps.append(MinPLogitsWarper(sampling.min_p))
    return torch.log_softmax(LogitsProcessorList(steps)(cast(LongTensor, token_ids), logits.clone()), dim=-1)


@pytest.mark.parametrize("settings", CASES, ids=str)
def test_the_distribution_is_that_of_transformers(settings: dict[str, Any]) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(40, VOCAB, generator=generator)
    token_ids = torch.randint(VOCAB, (40, 5), generator=generator)
    seen = torch.zeros(40, VOCAB, dtype=torch.bool).scatter_(1, token_ids, True)
    sampling = Sampling(**{"temperature": 0.8, **settings})
    ours, theirs = sampling_logprobs(logits, sampling, seen), transformers_logprobs(logits, sampling, token_ids)
    assert torch.equal(ours.isinf(), theirs.isinf())
    assert torch.allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize("settings", CASES, ids=str)
def test_draws_and_their_log_probs_follow_that_distribution(settings: dict[str, Any]) -> None:
    """20,000 draws: each frequency within five standard errors."""
    torch.manual_seed(3)
    logits, count = torch.randn(VOCAB), 20_000
    seen = torch.arange(VOCAB) < 4
    sampling = Sampling(**settings)
    tokens, logprobs = draw(logits.expand(count, VOCAB), torch.arange(count), 4, sampling, seen.expand(count, VOCAB))
    expected = sampling_logprobs(logits[None], sampling, seen[None])[0]
    frequency, probs = torch.bincount(tokens, minlength=VOCAB) / count, expected.exp()
    assert ((frequency - probs).abs() <= 5 * (probs * (1 - probs) / count).sqrt()).all()
    assert torch.allclose(logprobs, expected[tokens], atol=1e-6)


def test_a_penalty_counts_the_prompt_and_the_reply(tiny_model_dir: Path) -> None:
    """Greedy under a penalty that no logit survives never says a token twice."""
    engine, _ = engine_of(tiny_model_dir)
    sampling = dataclasses.replace(SAMPLING, temperature=0.0, repetition_penalty=1e6, stop_token_ids=())
    for prompt, sample in zip(PROMPTS, engine.generate(PROMPTS, 1, seeds(1), sampling), strict=True):
        said = [*prompt, *sample.token_ids]
        assert len(set(sample.token_ids)) == len(sample.token_ids)
        assert len(set(said)) == len(set(prompt)) + len(sample.token_ids)
    plain = engine.generate(PROMPTS, 1, seeds(1), dataclasses.replace(sampling, repetition_penalty=1.0))
    assert any(len(set(sample.token_ids)) < len(sample.token_ids) for sample in plain)


def text_of(tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int]) -> str:
    return str(tokenizer.decode(list(token_ids)))


def test_a_reply_ends_with_the_token_that_completes_a_stop_string(tmp_path: Path) -> None:
    folder = save_model(tmp_path)
    engine, tokenizer = engine_of(folder)[0], load_tokenizer(str(folder))
    engine.use_tokenizer(tokenizer)
    prompts, plain = [tokenizer.encode("question ab"), tokenizer.encode("x")], Sampling(max_new_tokens=24)
    before = engine.generate(prompts, 8, range(16), plain)
    texts = [text_of(tokenizer, sample.token_ids) for sample in before]
    string = texts[0][5:7]
    after = engine.generate(prompts, 8, range(16), dataclasses.replace(plain, stop_strings=(string, "never said")))
    for sample, full, text in zip(after, before, texts, strict=True):
        assert sample.token_ids == full.token_ids[: len(sample.token_ids)], "what comes before it is the same"
        assert sample.is_truncated == (string not in text)
        if string in text:
            assert string in text_of(tokenizer, sample.token_ids)
            assert string not in text_of(tokenizer, sample.token_ids[:-1])
    assert len({sample.is_truncated for sample in after}) == 2


def test_stop_strings_need_a_tokenizer(tiny_model_dir: Path) -> None:
    engine, _ = engine_of(tiny_model_dir)
    with pytest.raises(RuntimeError, match="use_tokenizer"):
        engine.generate(PROMPTS, 1, seeds(1), Sampling(stop_strings=("\n",)))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"top_k": 0}, "`top_k` must be at least 1, got 0"),
        ({"min_p": -0.1}, r"`min_p` must lie in \[0, 1\]"),
        ({"min_p": 1.1}, r"`min_p` must lie in \[0, 1\]"),
        ({"repetition_penalty": 0.0}, "`repetition_penalty` must be positive"),
        ({"repetition_penalty": float("inf")}, "`repetition_penalty` must be positive"),
        ({"stop_strings": ("a", "")}, "`stop_strings` has an empty text"),
    ],
    ids=str,
)
def test_settings_that_no_engine_can_draw_with_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Sampling(**wrong)
